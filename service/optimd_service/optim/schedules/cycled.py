"""What one_cycle and cyclic share: lr of their own, and momentum that falls while lr rises."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from optimd_service.optim.schedules.base import Memory, Values, WarmedSchedule

# Not 0: at the peak of a cycle the optimizer would lose its momentum buffer, and nesterov would be refused.
CycledMomentum = Annotated[float, Field(gt=0, lt=1)]


class CycledSchedule(WarmedSchedule):
    """A schedule with an lr of its own in place of the group's, and with momentum cycled against it.

    Momentum is β₁ of ``betas`` where the optimizer has those, else ``momentum``; an optimizer with neither keeps its
    hyperparameters (torch refuses it). A warm-up rises to the lr that the schedule begins with, at max_momentum.
    """

    cycle_momentum: bool = Field(default=True, description="Let momentum, or β₁, fall while lr rises.")
    base_momentum: CycledMomentum
    max_momentum: CycledMomentum

    @field_validator("max_momentum")
    @classmethod
    def _momenta_in_order(cls, max_momentum: float, others: ValidationInfo) -> float:
        if max_momentum < others.data.get("base_momentum", max_momentum):
            raise ValueError("max_momentum must not be less than base_momentum")
        return max_momentum

    @abstractmethod
    def at(self, position: int) -> tuple[float, float]:
        """The lr and the momentum at the schedule's own position, ≥ 0."""

    def behind_warmup(self, base: Values, position: int, _memory: Memory) -> dict[str, Any]:
        lr, momentum = self.at(position)
        # Rounding must not carry momentum beyond its bound, to 1.
        cycled = momentum_as(base, min(momentum, self.max_momentum)) if self.cycle_momentum else {}
        return {"lr": lr, **cycled}

    @abstractmethod
    def full_lr(self, base: Values) -> float:
        """The lr that the cycle begins with, of its own; a warm-up rises to it."""


def momentum_as(base: Values, momentum: float) -> dict[str, Any]:
    """The hyperparameter of ``base`` that momentum is, with this value; {} if it has none."""
    if "betas" in base:
        return {"betas": (momentum, *base["betas"][1:])}
    return {"momentum": momentum} if "momentum" in base else {}
