"""Conversions between the dtypes that travel: the same bits with torch and without, and no second model in memory."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimd._dtypes import DTYPES, PIECE, add_, copy_
from optimd._exchange import Request
from optimd._filling import fill
from optimd._narrowing import Narrowed, Narrowing, narrowed
from optimd._safetensors import Entry, RawTensor, encode

TORCH = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
# Ties in both directions, subnormals of each dtype, numbers near the largest, and what is none.
EDGES = np.array([
    0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-11, 1 + 3 * 2**-11, 1 / 3, -1 / 3, 65504.0,
    65519.0, 65520.0, 3.38e38, 3.39e38, 3.4028e38, 1e-40, 2**-24, 2**-25, 3 * 2**-26, 2.0**-133, np.inf, -np.inf,
], np.float32)  # fmt: skip


@pytest.fixture(params=["numpy", "torch"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With torch or, as in a program that has not imported it, without."""
    if request.param == "numpy":
        monkeypatch.delitem(sys.modules, "torch")
    return str(request.param)


def as_torch(array: np.ndarray[Any, Any], name: str) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if name == "BF16" else torch.from_numpy(array)


def in_dtype(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    tensor = torch.from_numpy(values.copy()).to(TORCH[name])
    return (tensor.view(torch.int16) if name == "BF16" else tensor).numpy().view(DTYPES[name])


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.usefixtures("means")
def test_every_dtype_becomes_every_other_as_torch_rounds_it(source: str, out: str) -> None:
    values = in_dtype(np.tile(EDGES, 5000), source)  # longer than one block
    if source == "F64":  # what lies between the numbers of float32
        values = values + np.float64(2.0**-40)
    converted = np.empty(values.size, DTYPES[out])
    copy_(converted, values)
    exact = as_torch(values, source)
    through = exact.float() if 2 in {values.itemsize, converted.itemsize} else exact
    expected = in_dtype(through.numpy(), out)
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
@pytest.mark.usefixtures("means")
def test_nan_stays_nan(bits: int, out: str) -> None:
    converted = np.empty(40, DTYPES[out])
    copy_(converted, np.full(40, bits, np.uint32).view(np.float32))
    assert as_torch(converted, out).isnan().all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_without_torch_the_bits_are_the_same(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    for name in ("BF16", "F16"):
        ours, theirs = np.empty(values.size, DTYPES[name]), np.empty(values.size, DTYPES[name])
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(sys.modules, "torch")
            copy_(ours, values)
        copy_(theirs, values)
        np.testing.assert_array_equal(ours.view(np.uint16), theirs.view(np.uint16))


@pytest.mark.usefixtures("means")
def test_what_is_added_is_added_in_float32() -> None:
    there = np.tile(EDGES[:11], 10_000)
    added = in_dtype(np.tile(EDGES[:11][::-1].copy(), 10_000), "BF16")
    expected = there + as_torch(added, "BF16").float().numpy()
    add_(there, added)
    np.testing.assert_array_equal(there, expected)


@pytest.mark.usefixtures("means")
def test_arrays_that_cannot_be_written_are_read() -> None:
    source = np.frombuffer(np.ones(3, np.float32).tobytes(), np.float32)
    out = np.empty(3, np.float16)
    copy_(out, source)
    assert list(out) == [1.0, 1.0, 1.0]


TENSORS: dict[str, Any] = {
    "large": np.linspace(-1, 1, PIECE + 5, dtype=np.float32).reshape(1, -1),
    "empty": np.zeros((0, 3), np.float32),
    "small": np.float32(0.1),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T / 7,
    "double": np.full(3, 1 / 3),
    "half": np.ones(2, np.float16),
    "kept": np.full(2, 1 / 3, np.float32),
    "raw": RawTensor("F32", (1,), np.float32(1 / 3).tobytes()),
}


def sent(request: Request) -> bytes:
    return b"".join(map(bytes, request.buffers()))


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_a_body_that_is_narrowed_is_the_body_of_narrow_tensors(name: str) -> None:
    whole = {
        key: tensor
        if key in {"kept", "raw", "half"}
        else RawTensor(name, np.shape(tensor), in_dtype(np.ascontiguousarray(tensor, np.float32).reshape(-1), name))
        for key, tensor in TENSORS.items()
    }
    expected = sent(Request("POST", "/", body=encode(whole, {"loss": "0.5"})))
    request = Request("POST", "/", body=encode(narrowed(TENSORS, name, but={"kept"}), {"loss": "0.5"}))
    assert sent(request) == expected
    assert sent(request) == expected  # once more, as a retry does
    assert request.body_bytes == len(expected)


def test_wider_dtypes_narrow_nothing() -> None:
    assert narrowed(TENSORS, "F64") == TENSORS
    assert [name for name, tensor in narrowed(TENSORS, "F32").items() if isinstance(tensor, Narrowed)] == ["double"]


def test_small_tensors_leave_in_one_piece() -> None:
    pieces = Narrowing([Narrowed("BF16", (10,), np.ones(10, np.float32))] * 100)
    assert [piece.nbytes for piece in pieces] == [pieces.nbytes] == [2000]


def peak_bytes(function: Any) -> int:
    function()  # what is allocated once
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("means")
def test_no_second_model_is_in_memory_while_gradients_are_sent() -> None:
    model = np.ones(32 * PIECE, np.float32)
    tensors = [Narrowed("BF16", model.shape, model)]
    assert peak_bytes(lambda: [None for _ in Narrowing(tensors)]) < model.nbytes / 10


@pytest.mark.parametrize("name", ["BF16", "F16", "F64"])
@pytest.mark.usefixtures("means")
def test_no_second_model_is_in_memory_while_weights_are_received(name: str) -> None:
    model = np.ones(32 * PIECE, np.float32)
    entry = Entry(name, model.shape, 0, model.size * DTYPES[name].itemsize)

    def receive() -> None:
        for place in fill(model, entry):
            np.frombuffer(place, np.uint8)[:] = 0

    assert peak_bytes(receive) < model.nbytes / 10
    assert not model.any()
