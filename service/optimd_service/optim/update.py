"""One update of one group: the optimizer's kernel, and the norms that the receipt gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from optimd_service.optim.catalogue import WORK_ROWS, Optimizer
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.norm import norm

# Few enough that a block and its scratch stay near the cores, enough that a call costs nothing beside its work.
BLOCK = 2**20


class Norms(NamedTuple):
    """2-norms, in float64: of new weights − old weights, and of the new weights."""

    update: float
    param: float

    @classmethod
    def joined(cls, parts: Iterable[Norms]) -> Norms:
        """The norms over several parts together."""
        updates, params = zip((0.0, 0.0), *parts, strict=True)
        return cls(math.hypot(*updates), math.hypot(*params))


Scratch = tuple[Tensor, ...]
T = TypeVar("T")


def new_scratch(longest_group: int, dtype: torch.dtype) -> Scratch:
    """What a block is worked on in: 1 + WORK_ROWS tensors of shape [at most BLOCK]."""
    return tuple(torch.zeros(min(BLOCK, max(1, longest_group)), dtype=dtype) for _ in range(1 + WORK_ROWS))


class Workplace(Protocol):
    """Where the blocks of a group are worked on.

    Attributes:
      block: elements of a block; where blocks begin decides the bits of the result, and who works on them does not.
    """

    block: int

    def scratch(self, dtype: torch.dtype) -> Scratch:
        """From ``new_scratch``, and the calling thread's alone."""

    def each(self, function: Callable[[int], T], starts: Iterable[int]) -> Iterable[T]:
        """``function`` of each start, in their order; perhaps side by side."""


class Here:
    """One block after the other, in one scratch, whose length is the block's."""

    def __init__(self, scratch: Scratch) -> None:
        self.block = scratch[0].numel()
        self._scratch = scratch

    def scratch(self, dtype: torch.dtype) -> Scratch:  # noqa: ARG002  there is one dtype here
        return self._scratch

    def each(self, function: Callable[[int], T], starts: Iterable[int]) -> Iterable[T]:
        return map(function, starts)


def update_(optimizer: Optimizer[Any], group: FlatGroup, hyper: Hyperparameters, place: Workplace) -> Norms:
    """Apply one step to a group in place, block by block.

    A group no longer than a block is one kernel call, however many tensors lie in it. Once the first weight is
    written nothing is allocated that grows with the group.

    Args:
      optimizer: the catalogue's row.   hyper: this group's, of that optimizer.
      group: shape [n] each, n ≥ 0; params and state are written, grads read only.
      place: where the blocks are worked on.

    Raises: KeyError, before anything is written, if ``group.state`` lacks a buffer that ``hyper`` needs.
    """
    length, block = group.params.numel(), place.block
    if length <= block:
        return _update_block_(optimizer, group, hyper, place.scratch(group.params.dtype))

    def update_block_(at: int) -> Norms:
        part = group.part(at, min(at + block, length))
        return _update_block_(optimizer, part, hyper, place.scratch(part.params.dtype))

    return Norms.joined(place.each(update_block_, range(0, length, block)))


def _update_block_(optimizer: Optimizer[Any], block: FlatGroup, hyper: Hyperparameters, scratch: Scratch) -> Norms:
    length = block.params.numel()
    old, *work = scratch if scratch[0].numel() == length else (row[:length] for row in scratch)
    old.copy_(block.params)
    optimizer.step_(block, hyper, work)
    change = torch.sub(block.params, old, out=old)
    return Norms(norm(change), norm(block.params))
