"""From a task to a ranked choice: the rules that hold are applied, and what does not fit is left out and named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optimd_service.optim.advice.courses import CONSTANT, course
from optimd_service.optim.advice.memory import numbers_a_parameter
from optimd_service.optim.advice.plan import Plan
from optimd_service.optim.advice.rule import Rule
from optimd_service.optim.advice.rules import RULES
from optimd_service.optim.advice.task import Task
from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.state_dtype import StateDtype, bytes_per_parameter

MOST_RECOMMENDED = 5


@dataclass(frozen=True)
class Reason:
    """Why, and where that is shown; None for what follows from the task alone."""

    text: str
    source: str | None


@dataclass(frozen=True)
class Memory:
    """In float32, or in float64 if the task is; the state as the recommendation keeps it.

    Attributes: bytes_per_parameter: of the state.   total_bytes: weights, gradients and state.
    """

    bytes_per_parameter: float
    state_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, bytes_per_parameter: float, task: Task) -> Memory:
        """For all parameters of a task."""
        state = math.ceil(bytes_per_parameter * task.parameters)
        return cls(round(float(bytes_per_parameter), 4), state, 2 * task.width * task.parameters + state)


@dataclass(frozen=True)
class Recommendation:
    """One choice; optimizer with its hyperparameters, and what stands beside them, are as a create body has them.

    Attributes:
      hyperparameters: those to set; the rest keep the catalogue's defaults.
      score: points of the rules that spoke for it; only their order means something.
    """

    optimizer: str
    hyperparameters: dict[str, Any]
    groups: Literal["no_decay"] | tuple[()]
    schedule: dict[str, Any]
    clip: dict[str, float] | None
    state_dtype: StateDtype
    memory: Memory
    score: float
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Advice:
    """Attributes: needed_bytes: the least room for state that would allow a choice; None where there is one."""

    recommendations: tuple[Recommendation, ...]
    warnings: tuple[Reason, ...]
    needed_bytes: int | None


def advise(task: Task, rules: Sequence[Rule] = RULES, optimizers: Mapping[str, Optimizer[Any]] = OPTIMIZERS) -> Advice:
    """Rank the optimizers for a task.

    Every optimizer gathers the points of the rules that hold and speak for it. Those with more than none are
    recommended, the highest first, of equals the one with the smaller state; five at most.
    """
    holding = [rule for rule in rules if rule.when.holds(task)]
    found = sorted(_candidates(task, holding, optimizers), key=lambda r: (-r.score, r.memory.state_bytes))
    fitting = [choice for choice in found if choice.memory.state_bytes <= task.room]
    warnings = [Reason(rule.text, rule.source) for rule in holding if rule.warning]
    warnings += [_too_large(choice, task) for choice in found if choice not in fitting]
    needed = None if fitting else min((choice.memory.state_bytes for choice in found), default=None)
    if needed is not None:
        text = f"Nothing suitable fits {task.memory_bytes} bytes; the smallest choice needs {needed} bytes of state."
        warnings.append(Reason(text, None))
    return Advice(tuple(fitting[:MOST_RECOMMENDED]), tuple(warnings), needed)


def _candidates(task: Task, holding: Sequence[Rule], optimizers: Mapping[str, Optimizer[Any]]) -> list[Recommendation]:
    plans = [Plan(optimizer) for optimizer in optimizers.values()]
    for plan in plans:
        for rule in holding:
            if rule.concerns(plan.optimizer.name):
                plan.apply(rule, task)
    return [_recommendation(plan, task) for plan in plans if plan.score > 0]


def _recommendation(plan: Plan, task: Task) -> Recommendation:
    hyper = plan.optimizer.parse(plan.values, where="hyperparameters")
    state_dtype, memory, compression = _kept(plan, hyper, task)
    planned = plan.schedule and plan.schedule.schedule
    schedule: dict[str, Any] = course(planned, hyper.lr, task.total_steps) if planned else {**CONSTANT}
    return Recommendation(
        optimizer=plan.optimizer.name,
        hyperparameters=hyper.model_dump(mode="json", include=set(plan.values) | {"lr"}),
        groups="no_decay" if plan.no_decay else (),
        schedule=schedule,
        clip={"max_norm": plan.clip.clip} if plan.clip and plan.clip.clip else None,
        state_dtype=state_dtype,
        memory=memory,
        score=plan.score,
        reasons=tuple(Reason(rule.text, rule.source) for rule in (*plan.rules(schedule["name"]), *compression)),
    )


def _kept(plan: Plan, hyper: Hyperparameters, task: Task) -> tuple[StateDtype, Memory, list[Rule]]:
    """The widest format in which the state fits, else the narrowest, and the rule that it is owed to."""
    plain = numbers_a_parameter(plan.optimizer, hyper, task.parameters) * task.width
    found: tuple[StateDtype, Memory, list[Rule]] = ("f32", Memory.of(plain, task), [])
    for rule in plan.compressions:
        if rule.state_dtype is None or found[1].state_bytes <= task.room:
            break
        smaller = Memory.of(bytes_per_parameter(plan.optimizer, hyper, rule.state_dtype), task)
        if smaller.state_bytes < found[1].state_bytes:
            found = (rule.state_dtype, smaller, [rule])
    return found


def _too_large(choice: Recommendation, task: Task) -> Reason:
    kept = "" if choice.state_dtype == "f32" else f" even in {choice.state_dtype}"
    needs = f"{choice.optimizer} needs {choice.memory.state_bytes} bytes of state{kept}"
    return Reason(f"{needs} and memory_bytes is {task.memory_bytes}: it is not recommended.", None)
