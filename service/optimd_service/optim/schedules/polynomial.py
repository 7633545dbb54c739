"""Polynomial: lr falls to 0 as a power of what is left."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Period, PlainSchedule, Positive


class PolynomialSchedule(PlainSchedule):
    """lr falls to 0, as a power of the share of updates left, and stays there.

    lr(t) = lr · (1 − min(t, total_iters) / total_iters)^power

    Source: torch.optim.lr_scheduler.PolynomialLR.
    """

    name: Literal["polynomial"] = "polynomial"
    total_iters: Period = Field(5, description="Updates until lr is 0.")
    power: Positive = Field(1.0, description="1 falls along a line; above 1 falls fast first.")

    def lr(self, base_lr: float, position: int) -> float:
        left: float = (1 - min(position, self.total_iters) / self.total_iters) ** self.power
        return base_lr * left
