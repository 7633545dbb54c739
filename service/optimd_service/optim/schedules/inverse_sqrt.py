"""Inverse square root: lr falls ever more slowly, with no end in sight."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Period, PlainSchedule


class InverseSqrtSchedule(PlainSchedule):
    """lr falls as 1/√t, for training without a planned end.

    lr(t) = lr · √(timescale / (t + timescale))

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.5, with t counted from the end of the warm-up. torch has none.
    """

    name: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: Period = Field(10_000, description="Updates after which lr has fallen to 1/√2.")

    def lr(self, base_lr: float, position: int) -> float:
        return base_lr * math.sqrt(self.timescale / (position + self.timescale))
