"""The table of advice as a table: nothing in it is dead, unfounded or refused by the catalogue."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from optimd_service.optim.advice.advise import Advice, advise
from optimd_service.optim.advice.rule import Range, Rule
from optimd_service.optim.advice.rules import RULES
from optimd_service.optim.advice.task import LARGEST, ModelKind, Symptom, Task
from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.clipping import Clip
from optimd_service.optim.schedules import Schedule

KINDS: tuple[ModelKind, ...] = get_args(ModelKind)
SCHEDULE: TypeAdapter[Any] = TypeAdapter(Schedule)
CLIP: TypeAdapter[Any] = TypeAdapter(Clip)


def named(rule: Rule) -> str:
    return rule.text[:60]


def least(wanted: Range | None, otherwise: int | None = None) -> int | None:
    return otherwise if wanted is None else max(1, int(wanted[0]))


def witness(rule: Rule, model: ModelKind, *, endless: bool) -> Task:
    """A task for which the rule's condition just holds; without an end if it may have none and that is wanted."""
    when = rule.when
    examples: int | None = None
    parameters = least(when.parameters) or (
        int(when.parameters_an_example[0]) if when.parameters_an_example else 10_000
    )
    batch = least(when.batch)
    if when.parameters_an_example:
        examples = 1
    if when.full_batch:
        examples, batch = 64, 64
    endless = when.steps is None and (endless if when.length_known is None else not when.length_known)
    return Task.model_validate(
        {
            "model": model,
            "parameters": parameters,
            "data": {"examples": examples, "sparse": bool(when.sparse), "noisy_labels": bool(when.noisy_labels)},
            "batch_size": batch,
            "steps": None if endless else least(when.steps, 200_000),
            "memory_bytes": None if when.state_budget is None else int((when.state_budget[1] - 1) * parameters),
            "fine_tuning": bool(when.fine_tuning),
            "precision": when.precision or "f32",
            "symptoms": list(when.symptoms[:1]),
        }
    )


def says(advice: Advice, rule: Rule) -> bool:
    said = [*advice.warnings, *(reason for found in advice.recommendations for reason in found.reasons)]
    return any((reason.text, reason.source) == (rule.text, rule.source) for reason in said)


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_every_rule_can_fire(rule: Rule) -> None:
    tasks = [witness(rule, model, endless=endless) for model in rule.when.models or KINDS for endless in (False, True)]
    assert all(rule.when.holds(task) for task in tasks)
    assert any(says(advise(task), rule) for task in tasks)


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_every_rule_has_a_reason_and_a_source(rule: Rule) -> None:
    assert len(rule.text) > 20
    assert rule.text.endswith(".")
    assert any(year in rule.source for year in map(str, range(1990, 2027))) or rule.source.startswith("https://docs.")


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_every_rule_names_optimizers_and_hyperparameters_of_the_catalogue(rule: Rule) -> None:
    for name in (*rule.optimizers, *rule.but_not):
        assert name in OPTIMIZERS
    for name in rule.optimizers:
        fields = OPTIMIZERS[name].hyperparameters.model_fields
        optional = {"nesterov", "momentum"} if not rule.weight else set()
        assert {*rule.set, *rule.lasting} - optional <= fields.keys()
        OPTIMIZERS[name].parse({key: value for key, value in rule.set.items() if key in fields}, where="set")


def test_no_rule_stands_in_the_table_twice() -> None:
    assert len({(rule.when, rule.text, rule.optimizers) for rule in RULES}) == len(RULES)


SYMPTOMS: list[list[Symptom]] = [[], *([symptom] for symptom in get_args(Symptom)), list(get_args(Symptom))]


@pytest.mark.parametrize("model", KINDS)
def test_every_answer_is_one_that_a_session_takes(model: ModelKind) -> None:
    """Also at the ends of every range: a parameter, a step, a quadrillion of either."""
    sizes, steps, batches = (1, 10**6, 7 * 10**10, LARGEST), (None, 1, 3, 5000, LARGEST), (None, 1, 2**16, LARGEST)
    for i, (parameters, count, batch) in enumerate(itertools.product(sizes, steps, batches)):
        body = {"model": model, "parameters": parameters, "steps": count, "batch_size": batch}
        body |= {"symptoms": SYMPTOMS[i % len(SYMPTOMS)], "fine_tuning": i % 2 == 0, "data": {"sparse": i % 3 == 0}}
        advice = advise(Task.model_validate(body))
        assert 1 <= len(advice.recommendations) <= 5
        assert advice.needed_bytes is None
        for found in advice.recommendations:
            OPTIMIZERS[found.optimizer].parse(found.hyperparameters, where="optimizer")
            SCHEDULE.validate_python(found.schedule)
            if found.clip is not None:
                CLIP.validate_python(found.clip)
            assert found.reasons


@pytest.mark.parametrize("model", KINDS)
def test_every_answer_recommends_something_or_says_what_budget_would_do(model: ModelKind) -> None:
    for budget in (0, 1, 4 * 10**6, 8 * 10**6, 10**9):
        task = Task(model=model, parameters=10**6, memory_bytes=budget)
        advice = advise(task)
        assert (advice.needed_bytes is None) == bool(advice.recommendations)
        assert all(found.memory.state_bytes <= budget for found in advice.recommendations)
        if advice.needed_bytes is not None:
            enough = task.model_copy(update={"memory_bytes": advice.needed_bytes})
            assert advise(enough).recommendations


def test_the_same_question_has_the_same_answer_in_order() -> None:
    task = Task(model="mlp", parameters=1000)
    scores = [found.score for found in advise(task).recommendations]
    assert scores == sorted(scores, reverse=True)
    assert advise(task) == advise(task)
