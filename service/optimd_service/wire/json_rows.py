"""Gradients by rows in JSON: `{"rows": [1, 5], "values": [[…], […]]}` in place of nested lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from optimd_service.errors import InvalidField
from optimd_service.types import Layout
from optimd_service.wire.json import array_from_json
from optimd_service.wire.rows import Rows, check_range, check_shapes


def rows_from_json(layout: Layout, tensors: Any) -> dict[str, Rows]:
    """Tensor name → its rows, for each tensor of the layout that came so; the rest is left to others to judge.

    Raises: InvalidField, ShapeMismatch.
    """
    if not isinstance(tensors, dict):
        return {}
    return {
        name: _rows(layout, name, value)
        for name, value in tensors.items()
        if isinstance(value, dict) and name in layout.shapes
    }


def _rows(layout: Layout, tensor: str, value: dict[str, Any]) -> Rows:
    if value.keys() != {"rows", "values"}:
        detail = f"{tensor[:80]!r}: send nested lists of numbers, or an object of `rows` and `values` alone."
        raise InvalidField(detail, field=tensor)
    rows = _numbers(tensor, value["rows"])
    values = array_from_json(tensor, value["values"])
    if not rows.size and not values.size:  # [] has no width
        values = values.reshape(0, *layout.shapes[tensor][1:])
    check_shapes(layout, tensor, rows.shape, values.shape)
    found = Rows(torch.from_numpy(rows), torch.from_numpy(values))
    check_range(layout, tensor, found.rows)
    return found


def _numbers(tensor: str, value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not isinstance(value, list) or not all(type(row) is int for row in value):
        raise InvalidField(f"{tensor[:80]!r}: `rows` is a list of whole numbers.", field=tensor)
    try:
        return np.asarray(value, np.int64)
    except OverflowError:
        raise InvalidField(f"{tensor[:80]!r}: `rows` holds a number beyond 64 bits.", field=tensor) from None
