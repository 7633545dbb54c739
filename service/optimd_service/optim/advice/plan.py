"""One optimizer on its way to being recommended: what the rules have made of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optimd_service.optim.advice.rule import Rule
from optimd_service.optim.advice.task import Task
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.state_dtype import compressible

# Their lr is a factor of a rate that they find themselves.
_SELF_TUNED = {"prodigy"}


@dataclass
class Plan:
    """What the rules have made of one optimizer.

    Attributes:
      shaped_by: the rules that scored or set something, but for the schedule's and the clip's.
      compressions: the rules by which its state may be kept in fewer bytes; the widest format first.
    """

    optimizer: Optimizer[Any]
    values: dict[str, Any] = field(default_factory=dict)
    score: float = 0.0
    no_decay: bool = False
    schedule: Rule | None = None
    clip: Rule | None = None
    compressions: list[Rule] = field(default_factory=list)
    shaped_by: list[Rule] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """What a hyperparameter stands at; None where the optimizer has none of that name."""
        fields = self.optimizer.hyperparameters.model_fields
        return self.values.get(name, fields[name].default if name in fields else None)

    def apply(self, rule: Rule, task: Task) -> None:
        """Let one rule, whose condition holds, do its work."""
        before = (dict(self.values), self.score, self.no_decay)
        self.score += rule.weight
        self._set(rule, task)
        self._multiply(rule, task)
        self.no_decay |= rule.no_decay and bool(self.value("weight_decay"))
        if (self.values, self.score, self.no_decay) != before:
            self.shaped_by.append(rule)
        self.schedule = rule if rule.schedule else self.schedule
        self.clip = rule if rule.clip else self.clip
        if rule.state_dtype is not None and task.precision != "f64" and compressible(self.optimizer):
            self.compressions.append(rule)

    def rules(self, schedule: str) -> list[Rule]:
        """Every rule that the plan is owed to; of several schedules the last, if it became one of this name."""
        kept = self.schedule if self.schedule and self.schedule.follows(schedule) else None
        found = list(self.shaped_by)
        for rule in (kept, self.clip):
            if rule is not None and rule not in found:
                found.append(rule)
        return found

    def _set(self, rule: Rule, task: Task) -> None:
        known = self.optimizer.hyperparameters.model_fields
        for name, value in rule.set.items():
            if name in known and (rule.optimizers or self.value(name) != value):
                self.values[name] = value
        if task.total_steps is not None:
            self.values |= dict.fromkeys(rule.lasting, task.total_steps)

    def _multiply(self, rule: Rule, task: Task) -> None:
        factors = dict(rule.times)
        if rule.batch is not None:
            factors["lr"] = factors.get("lr", 1.0) * rule.batch.factor(task.batch_size)
        if self.optimizer.name in _SELF_TUNED:
            factors.pop("lr", None)
        for name, factor in factors.items():
            if self.value(name) and factor != 1.0:
                self.values[name] = float(f"{self.value(name) * factor:.3g}")
        betas = self.value("betas")
        if rule.largest_beta2 is not None and betas is not None and betas[1] > rule.largest_beta2:
            self.values["betas"] = [betas[0], rule.largest_beta2, *betas[2:]]
