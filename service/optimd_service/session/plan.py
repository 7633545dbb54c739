"""What a session does with a push: its hyperparameters, its policy, and the flat buffers that these need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from optimd_service.optim import on_device
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.state_dtype import tensors_of
from optimd_service.session.on_device import require_on_device
from optimd_service.session.policy import Policy
from optimd_service.session.settings import Settings
from optimd_service.types import Buffers, BufferSize, Layout, Span

EMA, SWA, ACCUMULATED = "weights.ema", "weights.swa", "grads.accumulated"
HELD = "weights.held"  # by the client, where it is sent differences
SCRATCH = "update.scratch"  # where a device steps
TRANSIENT = frozenset({HELD, SCRATCH})
"""Buffers that mean nothing to another process, nor to another session."""
# Owners of numbers beside the groups.
LOSS_SCALE, ACCUMULATE, AVERAGED, SCHEDULE = "loss_scale", "accumulate", "averaged", "schedule"

# The one arithmetic on the event loop: up to here a push is applied in some 40 µs, and handing it to a thread and back
# takes 150 to 300 µs, in which no other request is served any sooner.
TINY = 2**14
FEW_GROUPS = 4
FEW_TENSORS = 256


def numbers_of(group: str) -> str:
    """Under which owner a group's numbers are kept: no group can be called like the schedule or the loss scale."""
    return f"group.{group}"


@dataclass(frozen=True)
class Pieces:
    """One state buffer: tensor name → its elements in the flat buffer, and its shape there."""

    spans: Mapping[str, Span]
    shapes: Mapping[str, tuple[int, ...]]
    numel: int

    @classmethod
    def like(cls, layout: Layout) -> Pieces:
        """A piece in the shape of each trained tensor, at the tensor's own offset."""
        return cls(layout.trained.spans, layout.shapes, layout.trained.numel)

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> Pieces:
        """Pieces of these shapes, one behind the other."""
        spans, at = {}, 0
        for name, shape in shapes.items():
            spans[name] = Span(at, at + torch.Size(shape).numel())
            at = spans[name].stop
        return cls(spans, shapes, at)

    def view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """One tensor's piece in its own shape; no copy."""
        start, stop = self.spans[name]
        return flat[start:stop].view(self.shapes[name])


Foreseen = Mapping[str, Sequence[Hyperparameters]]


def foresee(settings: Settings, policy: Policy) -> Foreseen:
    """Each group's hyperparameters, and what they are with the schedule.

    Raises: InvalidHyperparameter for a schedule that the optimizer cannot follow.
    """

    def of_group(hyper: Hyperparameters) -> Sequence[Hyperparameters]:
        values = dict(hyper)
        changes = policy.schedule_sets(values)
        return [hyper, *(settings.optimizer.parse({**values, **change}, where="schedule") for change in changes)]

    return {group: of_group(hyper) for group, hyper in settings.resolved.items()}


def state_pieces(optimizer: Optimizer[Any], foreseen: Foreseen, layout: Layout) -> Mapping[str, Pieces]:
    """The buffers, by torch's names, that an optimizer needs with any of these hyperparameters."""
    names = dict.fromkeys(name for hypers in foreseen.values() for hyper in hypers for name in optimizer.state(hyper))
    if optimizer.shapes is None:
        pieces = Pieces.like(layout)
        return dict.fromkeys(names, pieces)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in names}
    for tensor in layout.trained.tensors:
        for hyper in foreseen[tensor.group]:
            for buffer, shape in optimizer.shapes(hyper, tensor.shape).items():
                shapes[buffer][tensor.name] = shape
    return {buffer: Pieces.of_shapes(of_tensors) for buffer, of_tensors in shapes.items()}


@dataclass(frozen=True)
class Plan:
    """Settings and policy of a session at one moment, over its layout.

    Attributes:
      foreseen: group name → the hyperparameters that it may come to have. A push must find every buffer it needs.
    """

    layout: Layout
    settings: Settings
    policy: Policy
    foreseen: Foreseen = field(init=False)

    def __post_init__(self) -> None:
        """Raises: InvalidHyperparameter for a schedule that the optimizer cannot follow; InvalidField."""
        if self.policy.on_device:
            require_on_device(self.settings.optimizer, self.policy)
        object.__setattr__(self, "foreseen", foresee(self.settings, self.policy))

    @cached_property
    def pieces(self) -> Mapping[str, Pieces]:
        """The optimizer's state."""
        return state_pieces(self.settings.optimizer, self.foreseen, self.layout)

    @cached_property
    def buffers(self) -> Buffers:
        """All flat buffers: the optimizer's, and those that the policy keeps beside them."""
        if self.policy.state_dtype == "f32":
            sizes = {name: BufferSize(pieces.numel, self.layout.dtype) for name, pieces in self.pieces.items()}
        else:
            sizes = {
                tensor: BufferSize(*stored) for name in self.pieces for tensor, stored in self.stored(name).items()
            }
        beside = BufferSize(self.layout.trained.numel, self.layout.dtype)
        held = {HELD: BufferSize(self.layout.numel, self.layout.dtype)} if self.policy.wire.difference else {}
        return sizes | dict.fromkeys(_beside(self.policy), beside) | held | self._scratch

    @property
    def _scratch(self) -> dict[str, BufferSize]:
        if not self.policy.on_device:
            return {}
        return {SCRATCH: BufferSize(on_device.scratch_numel(max(self.group_lengths, default=0)), self.layout.dtype)}

    @cached_property
    def group_lengths(self) -> list[int]:
        """Elements of each group, in layout order."""
        return [stop - start for start, stop in self.layout.groups.values()]

    def rounding_seed(self, group: str) -> int:
        """What tells the random bits of one group's rounding from another's."""
        return (self.policy.seed + self.layout.groups[group].start) % 2**63

    def stored(self, buffer: str) -> Mapping[str, tuple[int, torch.dtype]]:
        """The flat tensors that a state buffer lies in, by name: one of its own name, unless it is in eight bits."""
        if self.policy.state_dtype == "f32":
            pieces = self.pieces.get(buffer) or Pieces.like(self.layout)
            return {buffer: (pieces.numel, self.layout.dtype)}
        return tensors_of(buffer, self.group_lengths, self.policy.state_dtype)

    @cached_property
    def pushes(self) -> tuple[Layout, Layout]:
        """What a push may hold, without buffers and with them, in the dtype in which it is kept."""
        dtype = self.policy.grad_dtype or self.layout.dtype
        return self.layout.trained.of_dtype(dtype), self.layout.pushable.of_dtype(dtype)

    @cached_property
    def tiny(self) -> bool:
        """Small enough in every respect to be stepped on the event loop."""
        few = len(self.layout.groups) <= FEW_GROUPS and len(self.layout.tensors) <= FEW_TENSORS
        of_host = not self.policy.on_device and self.settings.optimizer.shapes is None
        return self.layout.numel <= TINY and few and of_host

    @property
    def longest(self) -> float:
        """The 2-norm up to which gradients are stepped with."""
        optimizer = self.settings.optimizer
        return on_device.LONGEST.get(optimizer.name, math.inf) if self.policy.on_device else optimizer.longest

    @property
    def grads(self) -> BufferSize:
        """The buffer in which pushes arrive."""
        return BufferSize(self.pushes[1].numel, self.pushes[1].dtype)


def _beside(policy: Policy) -> Iterable[str]:
    if policy.ema is not None:
        yield EMA
    if policy.swa is not None:
        yield SWA
    if policy.accumulate is not None and policy.accumulate.steps > 1:
        yield ACCUMULATED
