"""What schedules have in common: their types and bounds, and the warm-up in front."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationInfo

from optimd_service.optim.hyperparameters import LARGEST

Values = Mapping[str, Any]
"""Hyperparameters of one group, by name."""

Memory = Mapping[str, float]
"""What a schedule remembers of the updates so far; {} before the first."""

# Up to here every whole number is also a float, so that no ratio of two counts can overflow.
MOST_STEPS = 2**53

Count = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Period = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Divisor = Annotated[float, Field(ge=1 / LARGEST, le=LARGEST)]
# JSON has no tuples, so a list is one; what lies inside stays strict.
Milestones = Annotated[tuple[Count, ...], Strict(strict=False), Field(max_length=1000)]
Gamma = Annotated[Positive, Field(description="γ: what the learning rate is multiplied by each time.")]
TotalSteps = Annotated[Period, Field(description="Updates of the whole schedule, the warm-up's included.")]


class BaseSchedule(BaseModel, ABC):
    """How hyperparameters change from update to update; names and defaults are torch.optim.lr_scheduler's.

    Every number holds for all groups of a session; values by group, which torch takes as lists, are not offered.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    name: str

    @abstractmethod
    def overrides(self, base: Values, position: int, memory: Memory) -> dict[str, Any]:
        """What ``optimd_service.optim.schedules.overrides`` says of this schedule."""

    def advance(self, _memory: Memory, _loss: float | None, /) -> dict[str, float]:
        """The memory after an update; a schedule that is a function of the position has none."""
        return {}


class WarmedSchedule(BaseSchedule):
    """A schedule with a linear warm-up in front, as SequentialLR([LinearLR, schedule], [warmup_steps]).

    With w = warmup_steps, a = warmup_start_factor and t the update's position, while t < w:
        lr = (a + (1−a)·t/w) · (the lr that the schedule works on)
    and from t = w on the schedule itself, at its own position t − w.
    """

    warmup_steps: Count = Field(0, description="Updates in front, over which lr rises linearly to its full size.")
    warmup_start_factor: Share = Field(1 / 3, description="Share of the full lr at the first update of the warm-up.")

    def overrides(self, base: Values, position: int, memory: Memory) -> dict[str, Any]:
        found = self.behind_warmup(base, max(position - self.warmup_steps, 0), memory)
        if position < self.warmup_steps:
            start = self.warmup_start_factor
            found["lr"] = self.full_lr(base) * (start + (1 - start) * position / self.warmup_steps)
        found["lr"] = min(found["lr"], LARGEST)  # γ > 1 would leave every bound
        return found

    @abstractmethod
    def behind_warmup(self, base: Values, position: int, memory: Memory) -> dict[str, Any]:
        """What holds at the schedule's own position, ≥ 0; at least "lr"."""

    def full_lr(self, base: Values) -> float:
        """The lr that the warm-up rises to."""
        lr: float = base["lr"]
        return lr


class PlainSchedule(WarmedSchedule):
    """A schedule that gives lr alone, as a function of the group's own lr and the position."""

    @abstractmethod
    def lr(self, base_lr: float, position: int) -> float:
        """The learning rate at the schedule's own position, ≥ 0."""

    def behind_warmup(self, base: Values, position: int, _memory: Memory) -> dict[str, Any]:
        return {"lr": self.lr(base["lr"], position)}


def power(gamma: float, times: int) -> float:
    """γᵗⁱᵐᵉˢ, or the largest float where that is none; γ > 0."""
    try:
        return gamma**times
    except OverflowError:
        return sys.float_info.max


def longer_than_warmup(total_steps: int, others: ValidationInfo) -> int:
    """Field validator of ``total_steps``, which counts the warm-up's updates too."""
    warmup_steps = others.data.get("warmup_steps", 0)
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps includes the warm-up and must be more than warmup_steps ({warmup_steps})")
    return total_steps
