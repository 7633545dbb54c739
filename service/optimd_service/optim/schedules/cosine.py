"""Cosine: lr falls along half a cosine."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from optimd_service.optim.schedules.base import PlainSchedule, Rate, TotalSteps, longer_than_warmup


class CosineSchedule(PlainSchedule):
    """lr falls to ``eta_min`` along half a cosine. It rises again behind its end, as torch's does.

    With T = total_steps − warmup_steps:
        lr(t) = eta_min + (lr − eta_min) · (1 + cos(π·t/T)) / 2

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983; torch.optim.lr_scheduler.CosineAnnealingLR, whose T_max is T.
    """

    name: Literal["cosine"] = "cosine"
    total_steps: TotalSteps
    eta_min: Rate = Field(0.0, description="The lowest lr, in parameter units per step.")

    _room_for_warmup = field_validator("total_steps")(longer_than_warmup)

    def lr(self, base_lr: float, position: int) -> float:
        half = self.total_steps - self.warmup_steps
        return cosine(base_lr, self.eta_min, position % (2 * half) / half)


def cosine(start: float, end: float, gone: float) -> float:
    """From ``start`` to ``end`` along half a cosine; ``gone`` is the share of the way, and 2 is back at the start."""
    return end + (start - end) * (1 + math.cos(math.pi * gone)) / 2
