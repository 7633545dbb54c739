"""Linear: from one share of lr to another along a line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Period, PlainSchedule, Share


class LinearSchedule(PlainSchedule):
    """lr goes from one share of itself to another along a line, and stays there.

    lr(t) = lr · (start + (end − start) · min(t, total_iters) / total_iters)

    Source: torch.optim.lr_scheduler.LinearLR.
    """

    name: Literal["linear"] = "linear"
    start_factor: Annotated[float, Field(gt=0, le=1)] = Field(1 / 3, description="Share of lr at the beginning.")
    end_factor: Share = Field(1.0, description="Share of lr from total_iters on.")
    total_iters: Period = Field(5, description="Updates from one to the other.")

    def lr(self, base_lr: float, position: int) -> float:
        gone = min(position, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * gone)
