"""Warm-up, stable, decay: full lr for most of a run, and a short fall at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from optimd_service.optim.schedules.base import Period, PlainSchedule, Share, TotalSteps, longer_than_warmup
from optimd_service.optim.schedules.cosine import cosine

SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda gone: 1 - gone,
    "cosine": lambda gone: cosine(1.0, 0.0, gone),
    "1-sqrt": lambda gone: 1 - math.sqrt(gone),
}
"""What is left of the way down when a share of the decay is gone; from 1 at 0 to 0 at 1."""


class WarmupStableDecaySchedule(PlainSchedule):
    """lr holds until ``decay_steps`` updates are left, falls to its ``min_lr_ratio``, and stays there.

    With D = decay_steps, u = (updates of the decay so far)/D in [0, 1] and r = min_lr_ratio:
        lr(t) = lr · (r + (1 − r) · s(u)),  s(u) = 1 − u (linear), (1 + cos πu)/2 (cosine) or 1 − √u (1-sqrt)

    Source: Hu et al. 2024, arXiv:2404.06395; 1-sqrt is Hägele et al. 2024, arXiv:2405.18392. torch has none.
    """

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    total_steps: TotalSteps
    decay_steps: Period = Field(description="The last updates of total_steps, over which lr falls.")
    decay_type: Literal["linear", "cosine", "1-sqrt"] = Field("linear", description="The shape of the fall.")
    min_lr_ratio: Share = Field(0.0, description="Share of lr at the end.")

    _room_for_warmup = field_validator("total_steps")(longer_than_warmup)

    @field_validator("decay_steps")
    @classmethod
    def _room_for_decay(cls, decay_steps: int, others: ValidationInfo) -> int:
        room = others.data.get("total_steps", math.inf) - others.data.get("warmup_steps", 0)
        if decay_steps > room:
            raise ValueError(f"decay_steps must be at most the {room} updates that total_steps has behind the warm-up")
        return decay_steps

    def lr(self, base_lr: float, position: int) -> float:
        begins = self.total_steps - self.warmup_steps - self.decay_steps
        gone = min(max(position - begins, 0) / self.decay_steps, 1.0)
        return base_lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * SHAPES[self.decay_type](gone))
