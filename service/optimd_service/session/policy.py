"""What a session does around the optimizer's step: to the gradients before it, and with the weights after it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from optimd_service.optim.accumulation import Accumulate
from optimd_service.optim.averages import Ema, Swa
from optimd_service.optim.clipping import Clip
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.loss_scale import LossScale
from optimd_service.optim.schedules import Schedule, overrides
from optimd_service.optim.schedules.sequential import SequentialSchedule
from optimd_service.optim.state_dtype import StateDtype
from optimd_service.session.description import SessionChange
from optimd_service.session.wire_dtypes import Wire
from optimd_service.types import NonfinitePolicy


@dataclass(frozen=True)
class Policy:
    """As a session's create body says it; PATCH replaces some of it.

    Attributes:
      grad_dtype: of the buffer in which pushes arrive; None for that of the weights.
      state_dtype: how the optimizer's moments are kept.   seed: of their rounding.
      device: where all buffers lie and all arithmetic is done.
      schedule_from: the step after which the schedule began; its position is how many steps came since.
    """

    nonfinite: NonfinitePolicy = "reject"
    clip: Clip | None = None
    centralize: bool = False
    maximize: bool = False
    accumulate: Accumulate | None = None
    loss_scale: LossScale | None = None
    schedule: Schedule | None = None
    schedule_from: int = 0
    grad_dtype: torch.dtype | None = None
    wire: Wire = field(default_factory=Wire)
    state_dtype: StateDtype = "f32"
    seed: int = 0
    ema: Ema | None = None
    swa: Swa | None = None
    device: str = "cpu"

    @property
    def on_device(self) -> bool:
        """Whether buffers lie in memory that the host does not see."""
        return self.device != "cpu"

    @property
    def writes_gradients(self) -> bool:
        """Whether gradients become others before they are stepped with; that they are negated does not count."""
        return self.clip is not None or self.centralize or self.loss_scale is not None

    @property
    def may_stand_still(self) -> bool:
        """Whether a push may have an effect and leave the version as it is, so that a version cannot tell its retry."""
        return self.loss_scale is not None or (self.accumulate is not None and self.accumulate.steps > 1)

    def changed(self, change: SessionChange, step: int) -> Policy:
        """The policy after a PATCH at ``step``; what the PATCH does not name stays. Raises: InvalidField."""
        given = {name: getattr(change, name) for name in {"clip", "schedule"} & change.model_fields_set}
        if change.nonfinite is not None:
            given["nonfinite"] = change.nonfinite
        if change.wire is not None:
            given["wire"] = self.wire.changed(change.wire)
        if "schedule" in given:
            given["schedule_from"] = step
        return replace(self, **given)

    def schedule_sets(self, base: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """What each part of the schedule sets at its first update: which hyperparameters it sets never changes.

        Args:
          base: a group's hyperparameters.
        """
        if self.schedule is None:
            return []
        parts = self.schedule.schedules if isinstance(self.schedule, SequentialSchedule) else [self.schedule]
        return [overrides(part, base, 0, {}) for part in parts]

    def scheduled(
        self,
        resolved: Mapping[str, Hyperparameters],
        step: int,
        memory: Mapping[str, float],
        said: Mapping[str, Collection[str]],
    ) -> Mapping[str, Hyperparameters]:
        """The groups' hyperparameters for the update that follows ``step``, with what the schedule says of them.

        Args:
          said: group name → hyperparameters that stay as they are.
        """
        if self.schedule is None:
            return resolved
        position, schedule = step - self.schedule_from, self.schedule
        return {
            group: hyper.model_copy(
                update={
                    name: value
                    for name, value in overrides(schedule, dict(hyper), position, memory).items()
                    if name not in said[group]
                }
            )
            for group, hyper in resolved.items()
        }
