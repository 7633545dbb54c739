"""Gradients by rows: what a batch did not look up is not sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from optimd._description import Tensors
from optimd._safetensors import INDEX, RawTensor


@dataclass(frozen=True, eq=False)
class RowGradient:
    """The gradient of some rows of a tensor of two dimensions; for optimizers that take rows, such as sparse_adam.

    Attributes:
      rows: shape [k], integers: which rows, in any order. The gradients of one that is there twice are added up.
      values: shape [k, width], their gradients.
    """

    rows: ArrayLike
    values: ArrayLike | RawTensor


Gradients: TypeAlias = Mapping[str, ArrayLike | RawTensor | RowGradient]


def as_entries(grads: Gradients) -> Tensors:
    """The tensors that are sent: two for each gradient by rows. Raises: TypeError for rows that are no integers."""
    if not any(isinstance(grad, RowGradient) for grad in grads.values()):
        return grads  # type: ignore[return-value] # there is no RowGradient among them
    return dict(_entries(grads))


def _entries(grads: Gradients) -> Iterator[tuple[str, ArrayLike | RawTensor]]:
    for name, grad in grads.items():
        if isinstance(grad, RowGradient):
            yield f"{name}#rows", _numbers(name, grad.rows)
            yield f"{name}#values", grad.values
        else:
            yield name, grad


def _numbers(name: str, rows: ArrayLike) -> RawTensor:
    array = np.asarray(rows)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"the rows of {name!r} are integers, not {array.dtype}")
    flat = np.ascontiguousarray(array, np.dtype("<i8")).reshape(-1)
    return RawTensor(INDEX, array.shape, flat.view(np.uint8).data if flat.size else b"")
