"""Every schedule in one type, and the two questions that a session asks of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from optimd_service.optim.schedules.base import Memory, Values
from optimd_service.optim.schedules.reduce_on_plateau import ReduceOnPlateauSchedule
from optimd_service.optim.schedules.sequential import Positional, SequentialSchedule

Schedule = Annotated[Positional | ReduceOnPlateauSchedule | SequentialSchedule, Field(discriminator="name")]

SCHEDULES = tuple(TypeAdapter(Schedule).json_schema()["discriminator"]["mapping"])
"""Every schedule's name."""


def overrides(schedule: Schedule, base: Values, position: int, memory: Memory) -> dict[str, Any]:
    """The hyperparameters that a schedule sets for one group at one update.

    Args:
      base: the group's own hyperparameters, as they would hold without a schedule; "lr", and "betas" or "momentum" if
        the optimizer has them.
      position: updates applied before this one since the schedule began, ≥ 0. A position of ten million costs what a
        small one does.
      memory: what ``advance`` returned after the update before; {} at the first.

    Returns: "lr", in [0, 10¹⁸] for a base lr in it; with one_cycle and cyclic, which cycle momentum, also "betas" or
      "momentum".
    """
    return schedule.overrides(base, position, memory)


def advance(schedule: Schedule, memory: Memory, loss: float | None) -> dict[str, float]:
    """What a schedule remembers after an update was applied; a skipped step is no update.

    Args:
      memory: what it remembered before; {} at the first update.   loss: as pushed with the step; None without one.

    Returns: finite floats by name, to be kept with the committed state; {} for all but reduce_on_plateau.
    """
    return schedule.advance(memory, loss)
