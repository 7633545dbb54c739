"""Our reading and writing of safetensors agrees with the library's, and refuses what is malformed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from optimd._exchange import Pour
from optimd._safetensors import RawTensor, encode
from optimd._sink import TensorSink
from optimd.errors import MalformedReply

TENSORS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f64": np.array(2.5),
    "f16": np.ones((1, 2, 1, 2), np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "strided": np.arange(9, dtype=np.float64)[::2],
    "big-endian": np.arange(3, dtype=">f4"),
    'quote"\n✓': np.ones(1, np.float32),
}


def joined(tensors: Any, metadata: dict[str, str] | None = None) -> memoryview:
    return memoryview(b"".join(encode(tensors, metadata or {})))


def poured(body: bytes, out: Any, piece_bytes: int = 10_000) -> TensorSink:
    sink = TensorSink(out)
    pour = Pour(sink.places(len(body)))
    for start in range(0, len(body), piece_bytes):
        pour.write(body[start : start + piece_bytes])
    pour.close()
    return sink


def decode(body: memoryview) -> tuple[dict[str, Any], dict[str, str]]:
    sink = poured(bytes(body), None)
    return sink.tensors, sink.metadata


def test_the_library_reads_what_we_write() -> None:
    loaded = safetensors.numpy.load(bytes(joined(TENSORS, {"a": "b"})))
    assert loaded.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(loaded[name], array, strict=name != "big-endian")


def test_we_read_what_the_library_writes() -> None:
    plain = {name: np.ascontiguousarray(TENSORS[name]) for name in ("f32", "f16", "empty", "strided")}
    tensors, metadata = decode(memoryview(safetensors.numpy.save(plain, {"receipt": "{}"})))
    assert metadata == {"receipt": "{}"}
    for name, array in plain.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


def test_tensors_that_were_read_before_are_read_with_their_own_metadata() -> None:
    plain = {"f32": TENSORS["f32"]}
    for said in ({"receipt": "1"}, {"receipt": "22"}, {}, {"receipt": "1"}):
        tensors, metadata = decode(memoryview(safetensors.numpy.save(plain, said or None)))
        assert metadata == said
        np.testing.assert_array_equal(tensors["f32"], TENSORS["f32"])


@pytest.mark.parametrize("header", ['{"__metadata__":{"a":"b"}%s}', '{"w":%s,"__metadata__":{"a":"b"}}'])
def test_metadata_may_stand_before_or_behind_the_tensors(header: str) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = (header % (f',"w":{entry}' if header.startswith('{"__') else entry)).encode()
    tensors, metadata = decode(memoryview(len(text).to_bytes(8, "little") + text + bytes(4)))
    assert (list(tensors), metadata) == (["w"], {"a": "b"})


def test_writing_copies_nothing() -> None:
    array = np.zeros(4, np.float32)
    _, view = encode({"a": array}, {})
    assert np.shares_memory(np.frombuffer(view, np.uint8), array)


def test_what_is_read_without_conversion_lies_in_one_buffer() -> None:
    tensors, _ = decode(joined({"a": np.zeros(4, np.float32), "b": np.zeros(2)}))
    assert tensors["a"].base is tensors["b"].base is not None


def test_the_tensors_lie_aligned_in_the_order_given() -> None:
    header, *views = encode({"b": np.zeros(1, np.float32), "a": np.ones(1, np.float32)}, {"x": "y"})
    assert header.nbytes % 8 == 0
    assert [bytes(view) for view in views] == [b"\0\0\0\0", np.float32(1).tobytes()]


def test_bfloat16_goes_out_as_its_bits_and_comes_in_as_float32() -> None:
    values = np.array([[1.0, -2.5], [np.inf, 3.0]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensors, _ = decode(joined({"a": RawTensor("BF16", (2, 2), bits)}))
    np.testing.assert_array_equal(tensors["a"], values, strict=True)


def test_integers_are_sent_as_numbers_and_complex_numbers_are_refused() -> None:
    np.testing.assert_array_equal(decode(joined({"a": [1, 2]}))[0]["a"], [1.0, 2.0])
    with pytest.raises(TypeError, match="complex128"):
        encode({"a": np.zeros(2, complex)}, {})


def test_a_raw_tensor_must_fill_its_shape() -> None:
    with pytest.raises(ValueError, match="does not fill"):
        encode({"a": RawTensor("F32", (3,), b"\0" * 8)}, {})
    with pytest.raises(ValueError, match="cannot be sent"):
        encode({"a": RawTensor("float32", (2,), b"\0" * 8)}, {})


def test_from_one_step_to_the_next_only_the_metadata_differs() -> None:
    headers = [bytes(encode({"a": [1.0]}, {"loss": loss})[0]) for loss in ("0.5", "0.125", "1e-300")]
    assert len({header.partition(b"},")[2] for header in headers}) == 1


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        (100).to_bytes(8, "little") + b"{}",
        file_of(b"\xff\xfe"),
        file_of([]),
        file_of(b"[" * 100_000),
        file_of({"__metadata__": []}),
        file_of({"a": 3}),
        file_of(one(dtype="I64", data_offsets=[0, 8]), bytes(8)),
        file_of(one(shape=[-1]), bytes(4)),
        file_of(one(shape=[1.0]), bytes(4)),
        file_of(one(shape=[True]), bytes(4)),
        file_of(one(shape=[2**32, 2**32]), bytes(4)),
        file_of(one(data_offsets=[4, 0]), bytes(4)),
        file_of(one(data_offsets=[0]), bytes(4)),
        file_of(one(extra=1), bytes(4)),
        file_of(one(), bytes(3)),
        file_of(one(), bytes(5)),
        file_of(one(data_offsets=[4, 8]), bytes(8)),
        file_of(one() | {"b": one()["a"]}, bytes(4)),
    ],
)
def test_a_malformed_reply_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedReply):
        decode(memoryview(body))
    with pytest.raises(MalformedReply):
        poured(body, {}, 3)


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_fail_otherwise(body: bytes) -> None:
    try:
        decode(memoryview(body))
    except MalformedReply:
        return


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("out", [None, {}, "all"])
def test_a_body_in_pieces_of_any_size_fills_the_same_tensors(piece_bytes: int, out: Any) -> None:
    targets = {name: np.full_like(array, -1) for name, array in TENSORS.items()} if out == "all" else out
    sink = poured(bytes(joined(TENSORS, {"a": "b"})), targets, piece_bytes)
    assert sink.metadata == {"a": "b"}
    assert sink.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(sink.tensors[name], array)
        assert out != "all" or sink.tensors[name] is targets[name]


def test_out_takes_converted_and_raw_tensors() -> None:
    body = bytes(joined({"a": np.ones(2, np.float32), "b": RawTensor("BF16", (1,), b"\x80\x3f")}))
    narrow, bits = np.zeros(2, np.float16), np.zeros(1, np.uint16)
    sink = poured(body, {"a": narrow, "b": RawTensor("BF16", (1,), bits)}, 5)
    assert list(narrow) == [1.0, 1.0]
    assert bits[0] == 0x3F80
    assert list(sink.tensors) == ["a"]
    rounded = np.zeros(2, np.uint16)
    poured(body, {"a": RawTensor("BF16", (2,), rounded)}, 5)
    assert list(rounded) == [0x3F80, 0x3F80]
