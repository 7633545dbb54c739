"""What a line of the table of advice is made of: when it holds, and what it then says and sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optimd_service.optim.advice.task import ModelKind, Precision, Symptom, Task
from optimd_service.optim.state_dtype import StateDtype

Settings = Mapping[str, Any]
Kinds = tuple[ModelKind, ...]
# At least this, and below that.
Range = tuple[float, float]
ScheduleName = Literal["constant", "cosine", "warmup_stable_decay", "one_cycle", "reduce_on_plateau"]


@dataclass(frozen=True, kw_only=True)
class When:
    """A condition on a task: all that is given must hold, and what is not given does not matter.

    Ranges hold of what the task says: a batch size that it leaves out is in no range.

    Attributes:
      models: any of these kinds.   symptoms: any of these was seen.
      batch, steps, examples: ranges.   parameters: range.
      state_budget: range of the room for state, bytes a parameter.
      parameters_an_example: range.   length_known: whether the number of steps can be told.
    """

    models: Kinds = ()
    symptoms: tuple[Symptom, ...] = ()
    fine_tuning: bool | None = None
    sparse: bool | None = None
    noisy_labels: bool | None = None
    precision: Precision | None = None
    full_batch: bool | None = None
    length_known: bool | None = None
    parameters: Range | None = None
    batch: Range | None = None
    steps: Range | None = None
    state_budget: Range | None = None
    parameters_an_example: Range | None = None

    def holds(self, task: Task) -> bool:
        examples = task.data.examples
        exact = (
            (self.fine_tuning, task.fine_tuning),
            (self.sparse, task.data.sparse),
            (self.noisy_labels, task.data.noisy_labels),
            (self.precision, task.precision),
            (self.full_batch, task.full_batch),
            (self.length_known, task.total_steps is not None),
        )
        ranges = (
            (self.parameters, task.parameters),
            (self.batch, task.batch_size),
            (self.steps, task.total_steps),
            (self.state_budget, task.state_budget),
            (self.parameters_an_example, None if examples is None else task.parameters / examples),
        )
        return (
            (not self.models or task.model in self.models)
            and (not self.symptoms or not set(self.symptoms).isdisjoint(task.symptoms))
            and all(wanted is None or wanted == found for wanted, found in exact)
            and all(wanted is None or _within(wanted, found) for wanted, found in ranges)
        )


def _within(wanted: Range, found: float | None) -> bool:
    return found is not None and wanted[0] <= found < wanted[1]


# Proportion holds up to batches of about 8,000 (Goyal et al. 2017, arXiv:1706.02677, figure 1): 32 times their 256.
_MOST_SCALED = 32.0


@dataclass(frozen=True)
class Scaling:
    """lr × (batch size / reference)^exponent: 1 is linear, ½ is by the square root."""

    reference: int
    exponent: float

    def factor(self, batch_size: int | None) -> float:
        """What lr is multiplied by; 1 when the batch size is not known."""
        return 1.0 if batch_size is None else min(math.pow(batch_size / self.reference, self.exponent), _MOST_SCALED)


@dataclass(frozen=True)
class Schedule:
    """A course for the learning rate.

    Attributes:
      warmup: share of all steps; 0 is none.
      longest: most steps of warm-up, and its length where the end of training is not known.
      floor: share of lr that is left at the end of a cosine.
    """

    name: ScheduleName
    warmup: float = 0.0
    longest: int = 1000
    floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the table.

    What it sets is set for each of ``optimizers`` that is recommended; none named means all, ``but_not`` some. Rules
    work in the order of the table: a later one sees what earlier ones have set, and has the last word.

    Attributes:
      text: the reason, or the warning.   source: where that is shown.
      weight: points for each of ``optimizers``; an optimizer with more than 0 in all is recommended.
      set: hyperparameters.   lasting: hyperparameters that take the number of steps, if it is known.
      times: hyperparameter → factor, where it is there and not 0.
      largest_beta2: what the second of ``betas`` is lowered to.
      batch: how lr goes with the batch size.   schedule, clip: replace what was there; clip is a largest norm.
      state_dtype: what state may be kept in where it does not fit as float32.
      no_decay: biases and the scales of normalisations get a group without weight decay.
      warning: ``text`` speaks of the task, not of an optimizer, and stands among the warnings.
    """

    when: When
    text: str
    source: str
    optimizers: tuple[str, ...] = ()
    but_not: tuple[str, ...] = ()
    weight: float = 0.0
    set: Settings = field(default_factory=dict)
    lasting: tuple[str, ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    largest_beta2: float | None = None
    batch: Scaling | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    state_dtype: StateDtype | None = None
    no_decay: bool = False
    warning: bool = False

    def follows(self, schedule: str) -> bool:
        """Whether its own schedule is the one of this name."""
        return self.schedule is not None and self.schedule.name == schedule

    def concerns(self, optimizer: str) -> bool:
        """Whether it works on this optimizer."""
        named = not self.optimizers or optimizer in self.optimizers
        return named and not self.warning and optimizer not in self.but_not
