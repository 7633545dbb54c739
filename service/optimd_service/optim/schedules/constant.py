"""Constant: a share of lr for a while, then all of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Period, PlainSchedule, Share


class ConstantSchedule(PlainSchedule):
    """A share of lr for ``total_iters`` updates, then lr.

    lr(t) = lr · factor while t < total_iters, then lr.

    Source: torch.optim.lr_scheduler.ConstantLR. A factor of 0 is taken; there it fails at the end of total_iters.
    """

    name: Literal["constant"] = "constant"
    factor: Share = Field(1 / 3, description="Share of lr, until total_iters.")
    total_iters: Period = Field(5, description="Updates at that share, after the warm-up.")

    def lr(self, base_lr: float, position: int) -> float:
        return base_lr * self.factor if position < self.total_iters else base_lr
