"""Step: lr shrinks at regular distances."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Gamma, Period, PlainSchedule, power


class StepSchedule(PlainSchedule):
    """lr is multiplied by γ every ``step_size`` updates.

    lr(t) = lr · γ^⌊t / step_size⌋

    Source: torch.optim.lr_scheduler.StepLR.
    """

    name: Literal["step"] = "step"
    step_size: Period = Field(description="Updates from one change to the next.")
    gamma: Gamma = 0.1

    def lr(self, base_lr: float, position: int) -> float:
        return base_lr * power(self.gamma, position // self.step_size)
