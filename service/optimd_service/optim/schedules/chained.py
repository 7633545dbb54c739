"""Chained: several schedules at once, each on what the one before gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator

from optimd_service.optim.schedules.base import BaseSchedule, Memory, Values
from optimd_service.optim.schedules.constant import ConstantSchedule
from optimd_service.optim.schedules.cosine import CosineSchedule
from optimd_service.optim.schedules.exponential import ExponentialSchedule
from optimd_service.optim.schedules.inverse_sqrt import InverseSqrtSchedule
from optimd_service.optim.schedules.linear import LinearSchedule
from optimd_service.optim.schedules.multistep import MultiStepSchedule
from optimd_service.optim.schedules.polynomial import PolynomialSchedule
from optimd_service.optim.schedules.step import StepSchedule
from optimd_service.optim.schedules.warmup_stable_decay import WarmupStableDecaySchedule

Multiplying = (
    ConstantSchedule
    | StepSchedule
    | MultiStepSchedule
    | ExponentialSchedule
    | LinearSchedule
    | PolynomialSchedule
    | CosineSchedule
    | InverseSqrtSchedule
    | WarmupStableDecaySchedule
)
"""Schedules that multiply lr by a number of the position alone, and so can be multiplied together."""

_Chain = Annotated[
    tuple[Annotated[Multiplying, Field(discriminator="name")], ...],
    Strict(strict=False),
    Field(min_length=1, max_length=20),
]


class ChainedSchedule(BaseSchedule):
    """Several schedules at once: lr is multiplied by what each of them would multiply it by.

    lr(t) = lr · f₁(t) · f₂(t) · …

    Source: torch.optim.lr_scheduler.ChainedScheduler. torch's product is lost where one of its schedules sets lr in
    place of multiplying it (CosineAnnealingLR behind its end, a SequentialLR at its milestones); here it stays one.
    """

    name: Literal["chained"] = "chained"
    schedules: _Chain = Field(description="Schedules that multiply lr, in any order.")

    @field_validator("schedules")
    @classmethod
    def _all_multiply(cls, schedules: tuple[Multiplying, ...]) -> tuple[Multiplying, ...]:
        if any(isinstance(schedule, CosineSchedule) and schedule.eta_min for schedule in schedules):
            raise ValueError("a cosine in a chain multiplies lr, and can have no eta_min")
        return schedules

    def overrides(self, base: Values, position: int, memory: Memory) -> dict[str, Any]:
        found = {"lr": base["lr"]}
        for schedule in self.schedules:
            found = schedule.overrides(found, position, memory)
        return found
