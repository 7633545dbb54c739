"""Headers of parts: what a part may hold, and which of them are known from one push to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimd_service.errors import InvalidField, Problem, ShapeMismatch, TensorMismatch, UnsupportedDtype
from optimd_service.types import Layout, TensorSpec
from optimd_service.wire.known import KnownHeaders
from optimd_service.wire.landing import PartReader
from optimd_service.wire.runs import Run
from optimd_service.wire.safetensors import MAX_HEADER_BYTES, PREFIX_BYTES, header_bytes, write_entries, write_metadata
from raw_safetensors import tensor_file

LAYOUT = Layout.arrange(
    [TensorSpec("b", (3,)), TensorSpec("c", (4,)), TensorSpec("emb", (5, 2)), TensorSpec("mean", (2,), role="buffer")],
    ["default"],
    torch.float32,
)
TENSORS = {name: torch.ones(shape) for name, shape in LAYOUT.shapes.items()}


def raw_header(tensors: dict[str, torch.Tensor]) -> bytes:
    file = tensor_file(tensors)
    return file[PREFIX_BYTES : PREFIX_BYTES + header_bytes(file[:PREFIX_BYTES])]


def as_libraries_write(layout: Layout, *names: str, **metadata: str) -> bytes:
    """The metadata first, and no blanks."""
    entries = write_entries({name: ("F32", layout.shapes[name]) for name in names})
    return write_metadata(metadata) + entries + b"}"


def some(*names: str) -> dict[str, torch.Tensor]:
    return {name: TENSORS[name] for name in names}


def test_a_part_in_layout_order_is_one_stretch_of_the_buffer() -> None:
    landing, _ = PartReader(LAYOUT).read(raw_header(some("c", "emb")))
    assert landing.runs == [Run(3, 17, torch.float32)]
    landing, _ = PartReader(LAYOUT).read(raw_header(some("emb", "b")))
    assert landing.runs == [Run(7, 17, torch.float32), Run(0, 3, torch.float32)]
    landing, _ = PartReader(LAYOUT).read(raw_header({}))
    assert (landing.names, landing.runs, landing.staged) == ([], [], False)


@pytest.mark.parametrize(
    ("tensors", "refusal"),
    [
        ({"x": torch.ones(3)}, TensorMismatch),
        ({"b": torch.ones(4)}, ShapeMismatch),
        ({"b": torch.ones(3, dtype=torch.int64)}, UnsupportedDtype),
        ({"emb#rows": torch.tensor([1]), "emb#values": torch.ones(1, 2)}, InvalidField),
        ({"emb#values": torch.ones(1, 2)}, InvalidField),
        ({"b#rows": torch.tensor([1])}, InvalidField),
        ({"x#rows": torch.tensor([1])}, UnsupportedDtype),
        ({"x#rows": torch.ones(1)}, TensorMismatch),
    ],
)
def test_what_is_no_whole_tensor_of_the_session_is_refused(tensors: Any, refusal: type[Problem]) -> None:
    with pytest.raises(refusal):
        PartReader(LAYOUT).read(raw_header({**tensors, **some("c")}))


def test_a_tensor_that_is_called_like_rows_is_a_tensor() -> None:
    layout = Layout.arrange([TensorSpec("emb", (2, 1)), TensorSpec("emb#rows", (2,))], ["default"], torch.float32)
    assert PartReader(layout).read(raw_header({"emb#rows": torch.ones(2)}))[0].names == ["emb#rows"]
    with pytest.raises(UnsupportedDtype):
        PartReader(layout).read(raw_header({"emb#rows": torch.ones(2, dtype=torch.int64)}))


PARTS = st.permutations(list(TENSORS)).flatmap(lambda names: st.integers(0, 4).map(lambda count: names[:count]))
SAID = st.dictionaries(st.sampled_from(["loss", "a},b", 'x"']), st.sampled_from(["1", "},", '},"b":{', "{}"]))


@settings(max_examples=50)
@given(st.lists(st.tuples(PARTS, SAID), max_size=12))
def test_a_known_part_is_read_as_if_it_were_new(pushes: list[tuple[list[str], dict[str, str]]]) -> None:
    reader = PartReader(LAYOUT)
    for names, metadata in pushes:
        raw = as_libraries_write(LAYOUT, *names, **metadata)
        assert reader.read(raw) == PartReader(LAYOUT).read(raw)


def test_the_parts_of_one_push_are_all_known_at_the_next() -> None:
    layout = Layout.arrange([TensorSpec(f"t{i}", (1,)) for i in range(65)], ["default"], torch.float32)
    reader = PartReader(layout)
    headers = [as_libraries_write(layout, name) for name in layout.shapes]
    first = [reader.read(raw)[0] for raw in headers[:64]]
    assert all(reader.read(raw)[0] is landing for raw, landing in zip(headers, first, strict=False))
    reader.read(headers[64])  # one too many: the oldest is forgotten
    assert reader.read(headers[1])[0] is first[1]
    assert reader.read(headers[0])[0] is not first[0]


def test_what_is_known_is_together_no_longer_than_one_header_may_be() -> None:
    known = KnownHeaders[str](64)
    long = [b'{"__metadata__":{}' + b"," + digit * (MAX_HEADER_BYTES // 3) + b"}" for digit in (b"1", b"2", b"3")]
    for raw in long[:2]:
        known.keep(raw, "read")
    assert [known.find(raw) for raw in long] == [("read", {}), ("read", {}), None]
    known.keep(long[2], "read")
    assert [known.find(raw) for raw in long] == [None, ("read", {}), ("read", {})]
