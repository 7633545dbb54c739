"""One cycle: lr rises to its peak and falls far below where it began."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from optimd_service.optim.schedules.base import Divisor, Rate, Share, TotalSteps, Values, longer_than_warmup
from optimd_service.optim.schedules.cosine import cosine
from optimd_service.optim.schedules.cycled import CycledMomentum, CycledSchedule


class _Phase(NamedTuple):
    """A stretch up to the position ``end``, and what lr and momentum go from and to on it."""

    end: float
    lr: tuple[float, float]
    momentum: tuple[float, float]


class OneCycleSchedule(CycledSchedule):
    """lr rises from max_lr/div_factor to max_lr and falls to max_lr/(div_factor·final_div_factor).

    With T = total_steps − warmup_steps, the rise ends at t = pct_start·T − 1 and the fall at t = T − 1; with
    three_phase, lr is back where it began at t = 2·pct_start·T − 2, and falls to its end from there. Each stretch
    follows half a cosine or a line; momentum goes the other way. What was reached at T − 1 stays: the value that torch
    gives for T itself (it raises beyond) lies behind the curve's end and can be below 0.

    Source: Smith & Topin 2018, arXiv:1708.07120; torch.optim.lr_scheduler.OneCycleLR. The group's own lr is not used.
    """

    name: Literal["one_cycle"] = "one_cycle"
    base_momentum: CycledMomentum = Field(0.85, description="Momentum, or β₁, while lr is highest.")
    max_momentum: CycledMomentum = Field(0.95, description="Momentum, or β₁, at both ends.")
    max_lr: Rate = Field(description="The peak, for every group.")
    total_steps: TotalSteps
    pct_start: Share = Field(0.3, description="Share of the updates behind the warm-up that lr rises for.")
    anneal_strategy: Literal["cos", "linear"] = Field("cos", description="The shape of rise and fall.")
    div_factor: Divisor = Field(25.0, description="How many times less than max_lr the first lr is.")
    final_div_factor: Divisor = Field(1e4, description="How many times less than the first lr the last one is.")
    three_phase: bool = Field(default=False, description="Fall as slowly as the rise, then on to the end.")

    _room_for_warmup = field_validator("total_steps")(longer_than_warmup)

    @field_validator("three_phase")
    @classmethod
    def _room_for_three(cls, three_phase: bool, others: ValidationInfo) -> bool:
        if three_phase and others.data.get("pct_start", 0) > 0.5:
            raise ValueError("three_phase needs pct_start of at most 0.5, or its last phase would never come")
        return three_phase

    def full_lr(self, _base: Values) -> float:
        return self.max_lr / self.div_factor

    def at(self, position: int) -> tuple[float, float]:
        position = min(position, self.total_steps - self.warmup_steps - 1)
        start = 0.0
        for phase in self._phases():
            if position <= phase.end:
                break
            start = phase.end
        gone = (position - start) / (phase.end - start) if phase.end > start else 1.0
        return self._between(phase.lr, gone), self._between(phase.momentum, gone)

    def _phases(self) -> tuple[_Phase, ...]:
        steps = self.total_steps - self.warmup_steps
        high, low = self.max_lr, self.max_lr / self.div_factor
        lowest = low / self.final_div_factor
        base, most = self.base_momentum, self.max_momentum
        rise = _Phase(self.pct_start * steps - 1, (low, high), (most, base))
        if not self.three_phase:
            return rise, _Phase(steps - 1, (high, lowest), (base, most))
        fall = _Phase(2 * self.pct_start * steps - 2, (high, low), (base, most))
        return rise, fall, _Phase(steps - 1, (low, lowest), (most, most))

    def _between(self, ends: tuple[float, float], gone: float) -> float:
        start, end = ends
        return cosine(start, end, gone) if self.anneal_strategy == "cos" else start + (end - start) * gone
