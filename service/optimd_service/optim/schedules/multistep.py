"""Multistep: lr shrinks at given positions."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from optimd_service.optim.schedules.base import Gamma, Milestones, PlainSchedule, power


class MultiStepSchedule(PlainSchedule):
    """lr is multiplied by γ at each milestone; one that is given twice counts twice.

    lr(t) = lr · γ^(number of milestones ≤ t)

    Source: torch.optim.lr_scheduler.MultiStepLR.
    """

    name: Literal["multistep"] = "multistep"
    milestones: Milestones = Field(description="Positions behind the warm-up, ascending.")
    gamma: Gamma = 0.1

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if any(later < earlier for earlier, later in pairwise(milestones)):
            raise ValueError("milestones must ascend")
        return milestones

    def lr(self, base_lr: float, position: int) -> float:
        return base_lr * power(self.gamma, bisect_right(self.milestones, position))
