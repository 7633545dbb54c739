"""The strict reader against the format's own library, and against what no library wrote."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from optimd_service.errors import Problem
from optimd_service.types import Layout, TensorSpec
from optimd_service.wire.landing import HeaderReader, Landing
from optimd_service.wire.safetensors import (
    PREFIX_BYTES,
    assemble_header,
    header_bytes,
    read_header,
    write_entries,
    write_metadata,
)
from raw_safetensors import tensor_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Everything that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT.filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6)
METADATA = st.dictionaries(TEXT, TEXT, max_size=4)

LAYOUT = Layout.arrange([TensorSpec("w", (2, 3)), TensorSpec("b", (2,))], ["default"], torch.float32)
ENTRIES = (
    b',"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}}'
)
GOOD = b'{"__metadata__":{"loss":"1"}' + ENTRIES


def split(file: bytes) -> tuple[bytes, bytes]:
    """Header and payload of a file."""
    end = PREFIX_BYTES + header_bytes(file[:PREFIX_BYTES])
    return file[PREFIX_BYTES:end], file[end:]


@given(TENSORS, METADATA)
def test_what_is_written_is_read_back(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    file = assemble_header(write_metadata(metadata), write_entries(tensors))
    assert len(file) % 8 == 0
    header = read_header(split(file)[0])
    assert header.metadata == metadata
    assert {e.name: (e.dtype, e.shape) for e in header.entries} == tensors
    payload = bytes(header.payload_bytes)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in load(file + payload).items()} == {
        name: (DTYPES[dtype], shape) for name, (dtype, shape) in tensors.items()
    }


@given(st.data())
def test_any_order_and_dtype_lands_as_the_library_reads_it(data: st.DataObject) -> None:
    shapes = data.draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    layout = Layout.arrange([TensorSpec(name, shape) for name, shape in shapes.items()], ["default"], dtype)
    tensors = {
        name: torch.randn(shapes[name]).to(DTYPES[data.draw(st.sampled_from(list(DTYPES)))])
        for name in data.draw(st.permutations(list(shapes)))
    }
    for file in (tensor_file(tensors), save(tensors)):
        raw, payload = split(file)
        header = read_header(raw)
        landing = Landing.plan(header, layout)
        flat = torch.full((layout.numel,), torch.nan, dtype=dtype)
        if landing.direct:
            flat = torch.frombuffer(bytearray(payload), dtype=dtype) if payload else flat
        else:
            landing.scatter_(flat, layout.spans, bytearray(payload))
        views = layout.views(flat)
        for name, tensor in load(file).items():
            assert torch.equal(views[name], tensor.to(dtype))


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_damaged_header_is_read_or_refused_and_nothing_else(chance: random.Random, changes: int) -> None:
    raw = bytearray(GOOD)
    for _ in range(changes):
        at = chance.randrange(len(raw))
        kind = chance.randrange(3)
        if kind == 0:
            raw[at] = chance.randrange(256)
        elif kind == 1:
            del raw[at : at + chance.randrange(1, 9)]
        else:
            raw[at:at] = chance.choice([b"[", b"]", b"{", b"}", b'"', b",", b":", b"-", b"9" * 20, b"1e9", b"null"])
    reader = HeaderReader(LAYOUT)
    reader.read(GOOD)
    for read in (read_header, reader.read):
        try:
            read(bytes(raw))
        except Problem as problem:
            assert problem.status < 500  # noqa: PT017  whatever comes must be one of these


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for text in (raw, b"{" + raw, b'{"w":' + raw):
        with pytest.raises(Problem):
            Landing.plan(read_header(text), LAYOUT)


ADVERSARIAL = [
    b'{"__metadata__":{}' + ENTRIES,
    b'{"__metadata__":{"loss":"2"}' + ENTRIES,
    b'{"__metadata__":{"a":"},"}' + ENTRIES,
    b'{"__metadata__":{"a":"\\"},"}' + ENTRIES,
    b'{"__metadata__":{"a":"1","a":"2"}' + ENTRIES,
    b'{"__metadata__":{"a":1}' + ENTRIES,
    b'{"__metadata__":{"a":{}}' + ENTRIES,
    b'{"__metadata__":{"a":NaN}' + ENTRIES,
    b'{"__metadata__":{"a":"\xff"}' + ENTRIES,
    b'{"__metadata__":{"a":"\\ud800"}' + ENTRIES,
    b'{"__metadata__":{},"__metadata__":{}' + ENTRIES,
    b'{"__metadata__":{},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}' + ENTRIES,
    b'{"__metadata__":{},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}' + ENTRIES,
    b'{"__metadata__":{},"extra":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' + ENTRIES,
    b'{"__metadata__":{"a":"b"' + ENTRIES,
    b'{"__metadata__":{"a":"b}' + ENTRIES,
    b'{"__metadata__":{"a":"b"}}' + ENTRIES,
    b'{"__metadata__":{' + ENTRIES,
    b'{"__metadata__":{ "a" : "b" } ' + ENTRIES,
    b'{ "__metadata__":{"a":"b"}' + ENTRIES,
    b' {"__metadata__":{"a":"b"}' + ENTRIES,
    b'{"__metadata__":null' + ENTRIES,
    b'{"__metadata__":{"a":"b"}' + ENTRIES + b"    ",
    b'{"__metadata__":{"a":"b"}' + ENTRIES + b"}",
    b'{"__metadata__":{"a":"b"}' + ENTRIES.replace(b"[2,3]", b"[3,2]"),
    b'{"__metadata__":{"a":"b"}' + ENTRIES.replace(b"F32", b"BF16"),
    b"{" + ENTRIES[1:],
]


def answer(read: Any, raw: bytes) -> Any:
    try:
        landing, metadata = read(raw)
    except Problem as problem:
        return (problem.slug, problem.evidence)
    return (landing.entries, landing.payload_bytes, landing.direct, dict(metadata))


@pytest.mark.parametrize("raw", ADVERSARIAL, ids=lambda raw: raw[:50].decode("latin-1"))
@pytest.mark.parametrize("remembered", [GOOD, b'{"__metadata__":{"a":"}"}' + ENTRIES, ADVERSARIAL[0]], ids=len)
def test_a_remembered_header_changes_no_answer(remembered: bytes, raw: bytes) -> None:
    reader = HeaderReader(LAYOUT)
    reader.read(remembered)
    strict = answer(HeaderReader(LAYOUT).read, raw)
    assert answer(reader.read, raw) == strict
    assert answer(reader.read, GOOD) == answer(HeaderReader(LAYOUT).read, GOOD)


@given(st.data())
def test_a_remembered_header_changes_no_answer_to_any_metadata(data: st.DataObject) -> None:
    reader = HeaderReader(LAYOUT)
    pieces = st.lists(
        st.sampled_from(['"', "{", "}", "},", ",", ":", "\\", '"a"', '"w"', '"__metadata__"', " ", "1"]), max_size=8
    )
    for text in data.draw(st.lists(pieces | METADATA, min_size=2, max_size=4)):
        metadata = json.dumps(text) if isinstance(text, dict) else "{" + "".join(text) + "}"
        raw = b'{"__metadata__":' + metadata.encode() + ENTRIES
        assert answer(reader.read, raw) == answer(HeaderReader(LAYOUT).read, raw)


def test_a_known_header_is_not_parsed_again() -> None:
    reader = HeaderReader(LAYOUT)
    first, _ = reader.read(GOOD)
    again, metadata = reader.read(GOOD.replace(b'"1"', b'"12"'))
    assert again is first
    assert metadata == {"loss": "12"}
