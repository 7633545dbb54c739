"""A long flat tensor, walked block by block: a worker is given one at a time, and nothing grows with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from optimd_service.optim.flat_group import Array

# Enough that a call costs nothing beside its work; few enough that the threads of a machine share a tensor evenly.
BLOCK = 2**20

T = TypeVar("T")


class Each(Protocol):
    """As ``map`` over whole numbers: results in their order, worked out perhaps side by side."""

    def __call__(self, function: Callable[[int], T], starts: Iterable[int], /) -> Iterable[T]: ...


def each_block(function: Callable[..., T], each: Each, *flats: Tensor, block: int = BLOCK) -> list[T]:
    """``function`` of each block of tensors that lie side by side, shape [n] each; one call, here, if one block is all.

    Where blocks begin depends on n alone, so whatever is summed over them has the same bits whoever works on them.
    """
    length = flats[0].numel()
    if length <= block:
        return [function(*flats)] if length else []
    return list(each(lambda at: function(*(flat[at : at + block] for flat in flats)), range(0, length, block)))


def multiply_(flat: Tensor, factor: float, each: Each = map) -> None:
    """Multiply all elements in place; nothing is written if the factor is 1.

    Args:
      flat: shape [n], float32, float64 or bfloat16, which is multiplied as float32 and rounded once.

    Cost: one read and one write.
    """
    if factor != 1:
        each_block(lambda block: block.mul_(factor), each, flat)


def array(flat: Tensor) -> Array:
    """``flat`` in place, as the compiled loops take it; bfloat16 as its bits."""
    array: Array = (flat.view(torch.uint16) if flat.dtype is torch.bfloat16 else flat).numpy()
    return array


def constant(value: float, flat: Tensor) -> Any:
    """A number in the dtype of ``flat``'s arithmetic, as ``FlatGroup.constants`` gives it."""
    return array(torch.tensor(value, dtype=torch.promote_types(flat.dtype, torch.float32)))[()]
