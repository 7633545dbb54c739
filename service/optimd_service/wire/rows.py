"""Gradients that name their rows: two entries of a body, `<tensor>#rows` and `<tensor>#values`, in place of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

import torch

from optimd_service.errors import InvalidField, ShapeMismatch, TensorMismatch, UnsupportedDtype
from optimd_service.types import Layout
from optimd_service.wire.dtypes import wire_dtype
from optimd_service.wire.safetensors import INDEX, Entry

ROWS, VALUES = "#rows", "#values"
_LONGEST_NAME_SHOWN = 80


class Rows(NamedTuple):
    """The rows of a tensor that came, as they came: in any order, and perhaps one of them twice.

    Attributes:
      rows: shape [k], int64, each a row of the tensor.   values: shape [k, width], their gradients.
    """

    rows: torch.Tensor
    values: torch.Tensor


class RowEntries(NamedTuple):
    """Where both halves lie in a payload."""

    rows: Entry
    values: Entry


def pairs_in(entries: Iterable[Entry], layout: Layout) -> dict[str, RowEntries]:
    """Tensor name → the two halves of its gradient, for each tensor whose rows came.

    A tensor may be called what a half is called: the name of a tensor wins.

    Args:
      layout: of everything that the body may hold.

    Raises: UnsupportedDtype, TensorMismatch for half a pair, InvalidField for a tensor that came both ways.
    """
    halves: dict[str, dict[str, Entry]] = {}
    whole: set[str] = set()
    for entry in entries:
        tensor, mark = _split(entry.name)
        if mark and entry.name not in layout.shapes and tensor in layout.shapes:
            halves.setdefault(tensor, {})[mark] = entry
        else:
            wire_dtype(entry.dtype, entry.name[:_LONGEST_NAME_SHOWN])  # I64 has been read for row numbers alone
            whole.add(entry.name)
    _refuse_both_ways(halves.keys() & whole)
    return {tensor: _both(tensor, found) for tensor, found in halves.items()}


def require_whole(entries: Iterable[Entry], layout: Layout) -> None:
    """Refuse rows where tensors come whole.

    Raises: InvalidField naming the first tensor whose rows came, UnsupportedDtype.
    """
    for entry in entries:
        tensor, mark = _split(entry.name)
        if mark and entry.name not in layout.shapes and tensor in layout.shapes:
            refuse_rows(tensor)
        wire_dtype(entry.dtype, entry.name[:_LONGEST_NAME_SHOWN])  # I64 has been read for row numbers alone


def refuse_rows(tensor: str) -> NoReturn:
    """Raises: InvalidField."""
    raise InvalidField(
        f"Rows of tensor {_shown(tensor)} came in a part of a push, whose tensors come whole: send the whole tensor, "
        "or push all gradients at once.",
        field=tensor,
    )


def _split(name: str) -> tuple[str, str]:
    mark = next((mark for mark in (ROWS, VALUES) if name.endswith(mark)), "")
    return name.removesuffix(mark), mark


def _refuse_both_ways(names: Iterable[str]) -> None:
    for name in sorted(names):
        raise InvalidField(f"Tensor {_shown(name)} came whole and by rows; send one of the two.", field=name)


def _both(tensor: str, found: Mapping[str, Entry]) -> RowEntries:
    for mark in (ROWS, VALUES):
        if mark not in found:
            raise TensorMismatch(
                f"Rows of tensor {_shown(tensor)} came without their {mark[1:]}: send {_shown(tensor + mark)} as well.",
                missing=[(tensor + mark)[:_LONGEST_NAME_SHOWN]],
                unknown=[],
            )
    rows = found[ROWS]
    if rows.dtype != INDEX:
        raise UnsupportedDtype(
            f"{_shown(rows.name)} has dtype {rows.dtype!r}; row numbers are {INDEX}.",
            tensor=rows.name[:_LONGEST_NAME_SHOWN],
            dtype=rows.dtype,
            supported=[INDEX],
        )
    return RowEntries(rows, found[VALUES])


def check_shapes(layout: Layout, tensor: str, rows: tuple[int, ...], values: tuple[int, ...]) -> None:
    """Refuse rows that cannot be the tensor's, by their shapes alone.

    No more rows than the tensor has, since more are better sent whole; so a body by rows is not much larger than one
    that holds the whole tensor.

    Raises: InvalidField, ShapeMismatch.
    """
    shape = layout.shapes[tensor]
    if tensor not in layout.trained.shapes:
        raise InvalidField(f"Tensor {_shown(tensor)} is not trained, and has no rows to push.", field=tensor)
    if len(shape) != 2:
        raise InvalidField(
            f"Tensor {_shown(tensor)} has shape {list(shape)}, and only tensors of two dimensions are pushed by rows; "
            "push it whole.",
            field=tensor,
        )
    if len(rows) != 1:
        _refuse_shape(tensor + ROWS, values[:1], rows)
    (count,), (height, width) = rows, shape
    if values != (count, width):
        _refuse_shape(tensor + VALUES, (count, width), values)
    if count > (height if width else 0):
        raise InvalidField(
            f"{count} rows of tensor {_shown(tensor)} came, which has {height}; add up those that come twice, or push "
            "it whole.",
            field=tensor,
        )


def _refuse_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
    raise ShapeMismatch(
        f"{_shown(name)} has shape {list(got)}, not {list(expected)}: one number for each row, and one row of the "
        "tensor's width for each number.",
        tensor=name,
        expected=list(expected),
        got=list(got),
    )


def check_range(layout: Layout, tensor: str, rows: torch.Tensor) -> None:
    """Refuse a number that is no row of the tensor.

    Args:
      rows: shape [k], int64.

    Raises: InvalidField.
    """
    height = layout.shapes[tensor][0]
    if len(rows) and not 0 <= rows.min().item() <= rows.max().item() < height:
        raise InvalidField(
            f"Rows of tensor {_shown(tensor)} are 0 … {height - 1}, and one that came lies outside.", field=tensor
        )


def _shown(name: str) -> str:
    return repr(name[:_LONGEST_NAME_SHOWN])
