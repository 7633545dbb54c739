"""One update of one group: walked block by block, tensor by tensor, or as the optimizer itself wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from optimd_service.optim import on_device
from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.kernel import Sums
from optimd_service.optim.optimizer import Optimizer

T = TypeVar("T")
Wrote = Callable[[Tensor], None]
"""Told which part of the weights has just been stepped, by the thread that did."""


class Norms(NamedTuple):
    """2-norms, in float64: of new weights − old weights, and of the new weights."""

    update: float
    param: float

    @classmethod
    def joined(cls, parts: Iterable[Norms]) -> Norms:
        """The norms over several parts together."""
        updates, params = zip((0.0, 0.0), *parts, strict=True)
        return cls(math.hypot(*updates), math.hypot(*params))

    @classmethod
    def of(cls, sums: Iterable[Sums]) -> Norms:
        """The norms over parts whose squares were summed; always added in the order given."""
        changes, sizes = zip((0.0, 0.0), *sums, strict=True)
        return cls(math.sqrt(sum(changes)), math.sqrt(sum(sizes)))


class Workplace(Protocol):
    """Where the blocks of a group are worked on.

    Attributes:
      block: elements of a block; where blocks begin decides the bits of the norms, and who works on them does not.
    """

    block: int

    def each(self, function: Callable[[int], T], starts: Iterable[int]) -> Iterable[T]:
        """``function`` of each start, in their order; perhaps side by side."""


class Here:
    """One block after the other, where it is called."""

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block

    def each(self, function: Callable[[int], T], starts: Iterable[int]) -> Iterable[T]:
        return map(function, starts)


def update_(
    optimizer: Optimizer[Any],
    group: FlatGroup,
    hyper: Hyperparameters,
    place: Workplace,
    wrote: Wrote | None = None,
) -> Norms:
    """Apply one step of an element-wise optimizer to a group in place, block by block.

    A group no longer than a block is one kernel call, however many tensors lie in it. Nothing is allocated that grows
    with the group.

    Args:
      optimizer: the catalogue's row.   hyper: this group's, of that optimizer.
      group: shape [n] each, n ≥ 0; params, state and numbers are written, grads read only.
      place: where the blocks are worked on.
      wrote: told of each block, if somebody waits for the weights.

    Raises: KeyError, before anything is written, if ``group.state`` lacks a buffer that ``hyper`` needs.
    """
    _advance(optimizer, group, hyper)
    if optimizer.survey_ is not None:
        _survey_(optimizer, group, hyper, place)
        group = group._replace(fresh=False)

    def step_(part: FlatGroup) -> Sums:
        sums = _step_(optimizer, part, hyper)
        if wrote is not None:
            wrote(part.params)
        return sums

    return Norms.of(_each_block(group, place, step_))


def update_tensors_(
    optimizer: Optimizer[Any],
    group: FlatGroup,
    tensors: Sequence[FlatGroup],
    hyper: Hyperparameters,
    place: Workplace,
) -> Norms:
    """Apply one step of an optimizer that looks at tensors one by one.

    Args:
      group: the whole; its numbers are advanced.
      tensors: its tensors, each with its ``shape``, and state in the shapes that the optimizer gives it.
    """
    _advance(optimizer, group, hyper)
    return Norms.of(place.each(lambda i: _step_(optimizer, tensors[i], hyper), range(len(tensors))))


def _advance(optimizer: Optimizer[Any], group: FlatGroup, hyper: Hyperparameters) -> None:
    if optimizer.advance is not None:
        group.numbers.update(optimizer.advance(hyper, group.step, group.numbers))


def _survey_(optimizer: Optimizer[Any], group: FlatGroup, hyper: Hyperparameters, place: Workplace) -> None:
    """Let every part be looked at, and the group's numbers be settled from the sums of what was seen."""
    survey_, settle = optimizer.survey_, optimizer.settle
    if survey_ is None or settle is None:
        raise TypeError(f"{optimizer.name} has one of survey_ and settle; they come together.")
    seen = _each_block(group, place, lambda part: survey_(_begun(optimizer, part, hyper), hyper))
    sums = tuple(map(sum, zip(*seen, strict=True)))
    group.numbers.update(settle(hyper, group.step, group.numbers, sums))


def _each_block(group: FlatGroup, place: Workplace, function: Callable[[FlatGroup], T]) -> Iterable[T]:
    length, block = group.params.numel(), place.block
    if length <= block:
        return (function(group),)
    return place.each(lambda at: function(group.part(at, min(at + block, length))), range(0, length, block))


def _begun(optimizer: Optimizer[Any], part: FlatGroup, hyper: Hyperparameters) -> FlatGroup:
    if part.fresh and optimizer.begin_ is not None:
        optimizer.begin_(part, hyper)
    return part


def _step_(optimizer: Optimizer[Any], part: FlatGroup, hyper: Hyperparameters) -> Sums:
    begun = _begun(optimizer, part, hyper)
    return optimizer.step_(begun, hyper) if part.params.is_cpu else on_device.step_(optimizer.name, begun, hyper)
