"""Sequential: one schedule after the other."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator

from optimd_service.optim.schedules.base import BaseSchedule, Memory, Milestones, Values
from optimd_service.optim.schedules.chained import ChainedSchedule, Multiplying
from optimd_service.optim.schedules.cosine_restarts import CosineRestartsSchedule
from optimd_service.optim.schedules.cyclic import CyclicSchedule
from optimd_service.optim.schedules.one_cycle import OneCycleSchedule

Positional = Multiplying | CosineRestartsSchedule | OneCycleSchedule | CyclicSchedule | ChainedSchedule
"""Schedules that are a function of the position, and so can begin anywhere."""

_Sequence = Annotated[
    tuple[Annotated[Positional, Field(discriminator="name")], ...],
    Strict(strict=False),
    Field(min_length=1, max_length=100),
]


class SequentialSchedule(BaseSchedule):
    """One schedule after the other; each begins anew, from the group's own hyperparameters, at its milestone.

    With i the number of milestones ≤ t:  lr(t) = scheduleᵢ(t − milestoneᵢ), the first beginning at 0.

    Source: torch.optim.lr_scheduler.SequentialLR. There OneCycleLR and CyclicLR change lr and momentum of their
    neighbours too, by the order in which they were made; here each schedule gives its own and no other's.
    """

    name: Literal["sequential"] = "sequential"
    schedules: _Sequence = Field(description="The schedules, in order.")
    milestones: Milestones = Field(description="Where each but the first begins: above 0, ascending.")

    @field_validator("milestones")
    @classmethod
    def _one_between_each_two(cls, milestones: tuple[int, ...], others: ValidationInfo) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise((0, *milestones))):
            raise ValueError("milestones must be above 0 and ascend")
        schedules = others.data.get("schedules")
        if schedules is not None and len(milestones) != len(schedules) - 1:
            raise ValueError(f"milestones must be one fewer than the {len(schedules)} schedules")
        return milestones

    def overrides(self, base: Values, position: int, memory: Memory) -> dict[str, Any]:
        begun = bisect_right(self.milestones, position)
        since = position - self.milestones[begun - 1] if begun else position
        return self.schedules[begun].overrides(base, since, memory)
