"""Cyclic: lr goes up and down between two bounds."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from optimd_service.optim.schedules.base import Period, Rate, Share, Values
from optimd_service.optim.schedules.cycled import CycledMomentum, CycledSchedule


class CyclicSchedule(CycledSchedule):
    """lr rises from base_lr for step_size_up updates and falls back for step_size_down, over and over.

    With h(t) the height along the current rise or fall, from 0 at base_lr to 1, and c = 0, 1, … the cycle's number:
        s(t) = h · (1 in mode triangular, 2^−c in triangular2, γᵗ in exp_range)
        lr(t) = base_lr + (max_lr − base_lr) · s(t)
        momentum(t) = max_momentum − (max_momentum − base_momentum) · s(t)

    Source: Smith 2017, arXiv:1506.01186; torch.optim.lr_scheduler.CyclicLR. The group's own lr is not used.
    """

    name: Literal["cyclic"] = "cyclic"
    base_momentum: CycledMomentum = Field(0.8, description="Momentum, or β₁, while lr is at max_lr.")
    max_momentum: CycledMomentum = Field(0.9, description="Momentum, or β₁, while lr is at base_lr.")
    base_lr: Rate = Field(description="The lower bound, for every group.")
    max_lr: Rate = Field(description="The upper bound of the first cycle, for every group.")
    step_size_up: Period = Field(2000, description="Updates of a rise.")
    step_size_down: Period | None = Field(None, description="Updates of a fall; as many as a rise when absent.")
    mode: Literal["triangular", "triangular2", "exp_range"] = Field(
        "triangular", description="Every cycle as high; half as high as the one before; lower by γ at every update."
    )
    gamma: Share = Field(1.0, description="γ of exp_range.")

    @field_validator("max_lr")
    @classmethod
    def _bounds_in_order(cls, max_lr: float, others: ValidationInfo) -> float:
        if max_lr < others.data.get("base_lr", max_lr):
            raise ValueError("max_lr must not be less than base_lr")
        return max_lr

    def full_lr(self, _base: Values) -> float:
        return self.base_lr

    def at(self, position: int) -> tuple[float, float]:
        scale = self._scale(position)
        lr = self.base_lr + (self.max_lr - self.base_lr) * scale
        return lr, self.max_momentum - (self.max_momentum - self.base_momentum) * scale

    def _scale(self, position: int) -> float:
        up, down = self.step_size_up, self.step_size_down or self.step_size_up
        cycle, since = divmod(position, up + down)
        height = since / up if since <= up else (up + down - since) / down
        if self.mode == "triangular2":
            return math.ldexp(height, -cycle)
        return height * self.gamma**position if self.mode == "exp_range" else height
