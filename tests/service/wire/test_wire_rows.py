"""Gradients that name their rows, as headers and as JSON: what is taken, what is refused, and what stays a tensor."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimd_service.errors import InvalidField, Problem, ShapeMismatch, TensorMismatch, UnsupportedDtype
from optimd_service.types import Layout, TensorSpec
from optimd_service.wire.json_rows import rows_from_json
from optimd_service.wire.landing import HeaderReader, Landing
from optimd_service.wire.received import JsonBody
from optimd_service.wire.safetensors import PREFIX_BYTES, header_bytes, read_header
from raw_safetensors import entry, raw_file, tensor_file

LAYOUT = Layout.arrange(
    [TensorSpec("b", (3,)), TensorSpec("emb", (5, 2)), TensorSpec("mean", (5, 2), role="buffer")],
    ["default"],
    torch.float32,
)
PUSHES = (LAYOUT.trained, LAYOUT.pushable)
ROWS, VALUES = torch.tensor([4, 0, 4]), torch.arange(6.0).view(3, 2)
PUSH = {"b": torch.ones(3), "emb#rows": ROWS, "emb#values": VALUES}


def landed(file: bytes, *layouts: Layout) -> tuple[Landing, bytearray]:
    end = PREFIX_BYTES + header_bytes(file[:PREFIX_BYTES])
    landing, _ = HeaderReader(*(layouts or PUSHES), by_rows=True).read(file[PREFIX_BYTES:end])
    return landing, bytearray(file[end:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [["b", "emb#rows", "emb#values"], ["emb#values", "b", "emb#rows"]], ids="-".join)
def test_rows_and_values_are_read_as_they_came(dtype: torch.dtype, order: list[str]) -> None:
    tensors = {**PUSH, "emb#values": VALUES.to(dtype), "b": torch.ones(3).half()}  # a half leaves the rest unaligned
    landing, payload = landed(tensor_file({name: tensors[name] for name in order}))
    assert not landing.direct
    (rows, values) = landing.rows(LAYOUT, payload)["emb"]
    assert torch.equal(rows, ROWS)
    assert torch.equal(values, VALUES.to(dtype))
    flat = torch.full((LAYOUT.trained.numel,), 7.0)
    landing.scatter_(flat, LAYOUT.spans, payload)
    assert flat.tolist() == [1] * 3 + [7] * 10


def test_a_remembered_header_of_rows_is_that_push_and_no_other() -> None:
    reader, strict = HeaderReader(*PUSHES, by_rows=True), HeaderReader(*PUSHES, by_rows=True)
    fewer = {**PUSH, "emb#rows": ROWS[:2], "emb#values": VALUES[:2]}
    whole = {"b": torch.ones(3), "emb": torch.ones(5, 2)}
    for step, tensors in enumerate([PUSH, PUSH, fewer, PUSH, whole, fewer, whole]):
        file = tensor_file(tensors, {"loss": str(step)})
        raw = file[PREFIX_BYTES : PREFIX_BYTES + header_bytes(file[:PREFIX_BYTES])]
        assert reader.read(raw) == strict.read(raw) == HeaderReader(*PUSHES, by_rows=True).read(raw)


def test_no_rows_are_rows_too() -> None:
    none = {"b": torch.ones(3), "emb#rows": torch.zeros(0, dtype=torch.int64), "emb#values": torch.zeros(0, 2)}
    landing, payload = landed(tensor_file(none))
    (rows, values) = landing.rows(LAYOUT, payload)["emb"]
    assert (rows.shape, values.shape) == ((0,), (0, 2))


def test_a_tensor_whose_name_ends_like_a_half_is_a_tensor() -> None:
    names = ("emb", "emb#rows", "emb#values", "x#rows")
    layout = Layout.arrange([TensorSpec(name, (2, 1)) for name in names], ["default"], torch.float32)
    tensors = {name: torch.full((2, 1), float(i)) for i, name in enumerate(names)}
    landing, payload = landed(tensor_file(tensors), layout)
    assert landing.direct
    assert not landing.by_rows
    assert torch.frombuffer(payload, dtype=torch.float32).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    by_rows = {**tensors, "x#rows#rows": torch.tensor([1]), "x#rows#values": torch.ones(1, 1)}
    del by_rows["x#rows"]
    assert landed(tensor_file(by_rows), layout)[0].by_rows.keys() == {"x#rows"}


def test_rows_beside_new_values_of_buffers_are_told_from_a_push_without_them() -> None:
    landing, _ = landed(tensor_file({**PUSH, "mean": torch.ones(5, 2)}))
    assert [entry.name for entry in landing.entries] == ["b", "mean"]
    with pytest.raises(TensorMismatch) as refusal:
        landed(tensor_file({name: PUSH[name] for name in ("emb#rows", "emb#values")}))
    assert refusal.value.evidence == {"missing": ["b"], "unknown": []}


def integers(name: str, shape: list[int], values: bytes) -> bytes:
    """A push in whose place of ``emb`` stand two entries, the rows of this name and shape."""
    header = {
        name: entry(shape, 0, len(values), "I64"),
        "emb#values": entry([1, 2], len(values), len(values) + 8),
        "b": entry([3], len(values) + 8, len(values) + 20),
    }
    return raw_file(header, values + bytes(20))


@pytest.mark.parametrize(
    ("change", "problem", "evidence"),
    [
        ({"emb#rows": None}, TensorMismatch, {"missing": ["emb#rows"], "unknown": []}),
        ({"emb#values": None}, TensorMismatch, {"missing": ["emb#values"], "unknown": []}),
        ({"emb": torch.ones(5, 2)}, InvalidField, {"field": "emb"}),
        ({"emb#rows": torch.ones(3)}, UnsupportedDtype, {"tensor": "emb#rows", "dtype": "F32", "supported": ["I64"]}),
        ({"emb#values": torch.ones(3, 3)}, ShapeMismatch, {"expected": [3, 2], "got": [3, 3], "tensor": "emb#values"}),
        ({"emb#values": torch.ones(6)}, ShapeMismatch, {"expected": [3, 2], "got": [6], "tensor": "emb#values"}),
        ({"emb#rows": ROWS[:2]}, ShapeMismatch, {"expected": [2, 2], "got": [3, 2], "tensor": "emb#values"}),
        ({"emb#rows": ROWS[None]}, ShapeMismatch, {"expected": [3], "got": [1, 3], "tensor": "emb#rows"}),
        (
            {"emb#rows": torch.zeros(6, dtype=torch.int64), "emb#values": torch.ones(6, 2)},
            InvalidField,
            {"field": "emb"},
        ),
        ({"b": None, "b#rows": ROWS, "b#values": VALUES}, InvalidField, {"field": "b"}),
        ({"mean#rows": ROWS, "mean#values": VALUES}, InvalidField, {"field": "mean"}),
        ({"mean": torch.ones(5, 2), "z#rows": torch.ones(1)}, TensorMismatch, {"missing": [], "unknown": ["z#rows"]}),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_what_cannot_be_rows_is_refused_by_its_header(
    change: dict[str, Any], problem: type[Problem], evidence: dict[str, Any]
) -> None:
    tensors = {name: tensor for name, tensor in {**PUSH, **change}.items() if tensor is not None}
    with pytest.raises(problem) as refusal:
        landed(tensor_file(tensors))
    assert refusal.value.evidence == evidence


@pytest.mark.parametrize("name", ["emb#values", "b", "emb", "zzz#rows", "mean"])
def test_integers_are_nothing_but_row_numbers(name: str) -> None:
    file = raw_file({name: entry([1], 0, 8, "I64")}, bytes(8))
    with pytest.raises(UnsupportedDtype):
        landed(file)


def test_integers_are_refused_where_no_rows_are_expected() -> None:
    raw = integers("emb#rows", [1], bytes(8))[PREFIX_BYTES:-28]
    with pytest.raises(UnsupportedDtype):
        read_header(raw)
    with pytest.raises(UnsupportedDtype):
        HeaderReader(LAYOUT).read(raw)
    HeaderReader(*PUSHES, by_rows=True).read(raw)


def test_a_tensor_called_like_row_numbers_does_not_come_as_integers() -> None:
    layout = Layout.arrange([TensorSpec("x#rows", (1,)), TensorSpec("x", (1, 1))], ["default"], torch.float32)
    header = {"x#rows": entry([1], 0, 8, "I64"), "x": entry([1, 1], 8, 12)}
    with pytest.raises(UnsupportedDtype):
        landed(raw_file(header, bytes(12)), layout)


@pytest.mark.parametrize("row", [-1, 5, 2**63 - 1, -(2**63)])
def test_a_row_that_the_tensor_lacks_is_refused_by_name(row: int) -> None:
    landing, payload = landed(tensor_file({**PUSH, "emb#rows": torch.tensor([0, row, 1])}))
    with pytest.raises(InvalidField, match="0 … 4") as refusal:
        landing.rows(LAYOUT, payload)
    assert refusal.value.evidence == {"field": "emb"}


def test_a_tensor_without_elements_takes_no_rows_however_many_it_has() -> None:
    layout = Layout.arrange([TensorSpec("emb", (2**40, 0))], ["default"], torch.float32)
    with pytest.raises(InvalidField):
        landed(tensor_file({"emb#rows": torch.zeros(100, dtype=torch.int64), "emb#values": torch.ones(100, 0)}), layout)


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_a_damaged_header_of_rows_is_read_or_refused_and_nothing_else(chance: random.Random, changes: int) -> None:
    file = tensor_file(PUSH, {"loss": "1"})
    end = PREFIX_BYTES + header_bytes(file[:PREFIX_BYTES])
    raw = bytearray(file[PREFIX_BYTES:end])
    pieces = [b"#rows", b"#values", b"I64", b"F32", b"emb", b'"', b"[", b"]", b",", b"-", b"9" * 20, b"5", b"mean"]
    for _ in range(changes):
        at = chance.randrange(len(raw))
        raw[at : at + chance.randrange(7)] = chance.choice(pieces)
    try:
        landing, _ = HeaderReader(*PUSHES, by_rows=True).read(bytes(raw))
        if landing.payload_bytes <= len(file) - end:
            landing.rows(LAYOUT, bytearray(file[end:]))
    except Problem as problem:
        assert problem.status < 500  # noqa: PT017  whatever comes must be one of these


def test_json_says_the_same() -> None:
    body = JsonBody(
        bytearray(
            json.dumps({"grads": {"b": [1, 1, 1], "emb": {"rows": [4, 0, 4], "values": VALUES.tolist()}}}), "utf-8"
        ),
        "grads",
        "buffers",
    )
    given = body.rows(LAYOUT.pushable)
    assert torch.equal(given["emb"].rows, ROWS)
    assert torch.equal(given["emb"].values, VALUES.double())
    flat = torch.full((LAYOUT.trained.numel,), 7.0)
    body.land_(flat, LAYOUT.trained, given)
    assert flat.tolist() == [1] * 3 + [7] * 10
    assert rows_from_json(LAYOUT, {"emb": {"rows": [], "values": []}})["emb"].values.shape == (0, 2)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"rows": [1]},
        {"rows": [1], "values": [[1, 2]], "more": 1},
        {"rows": 1, "values": [[1, 2]]},
        {"rows": [1.0], "values": [[1, 2]]},
        {"rows": [True], "values": [[1, 2]]},
        {"rows": ["1"], "values": [[1, 2]]},
        {"rows": [2**70], "values": [[1, 2]]},
        {"rows": [5], "values": [[1, 2]]},
        {"rows": [-1], "values": [[1, 2]]},
        {"rows": [0] * 6, "values": [[1, 2]] * 6},
        {"rows": [0], "values": [[True, 2]]},
        {"rows": [0], "values": [[None, 2]]},
        {"rows": [0, 1], "values": [[1, 2], [3]]},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_json_that_cannot_be_rows_is_refused_by_name(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refusal:
        rows_from_json(LAYOUT, {"emb": value})
    assert refusal.value.evidence["field"] == "emb"


@pytest.mark.parametrize("values", [[[1, 2, 3]], [1], [], [[1, 2], [3, 4]]], ids=str)
def test_json_values_of_another_shape_are_refused(values: list[Any]) -> None:
    with pytest.raises(ShapeMismatch):
        rows_from_json(LAYOUT, {"emb": {"rows": [1], "values": values}})
