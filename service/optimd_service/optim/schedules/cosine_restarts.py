"""Cosine with restarts: lr falls along half a cosine, again and again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Period, PlainSchedule, Rate
from optimd_service.optim.schedules.cosine import cosine


class CosineRestartsSchedule(PlainSchedule):
    """lr falls to ``eta_min`` along half a cosine, jumps back, and falls again, each time ``t_mult`` times as long.

    With T the length of the current fall (t_0, t_0·t_mult, t_0·t_mult², …) and s the updates since it began:
        lr(t) = eta_min + (lr − eta_min) · (1 + cos(π·s/T)) / 2

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983; torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, whose
    T_0 and T_mult are t_0 and t_mult.
    """

    name: Literal["cosine_restarts"] = "cosine_restarts"
    t_0: Period = Field(description="Updates of the first fall.")
    t_mult: Period = Field(1, description="How many times as long as the one before each fall is.")
    eta_min: Rate = Field(0.0, description="The lowest lr, in parameter units per step.")

    def lr(self, base_lr: float, position: int) -> float:
        since, length = self._in_its_fall(position)
        return cosine(base_lr, self.eta_min, since / length)

    def _in_its_fall(self, position: int) -> tuple[int, int]:
        """Updates since the current fall began, and its length; the falls to pass are as few as position has digits."""
        if self.t_mult == 1:
            return position % self.t_0, self.t_0
        length = self.t_0
        while position >= length:
            position -= length
            length *= self.t_mult
        return position, length
