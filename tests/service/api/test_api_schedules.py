"""A schedule that the server runs, step by step against torch's own on a torch optimizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients
from api_subject import GRADS, Subject, assert_refused, receipt_of
from torch.optim import lr_scheduler

STEPS = 30
GROUPS = [{"name": "biases", "match": ["bias"], "lr": 0.01}]
NAN = {**GRADS, "bias": torch.tensor([float("nan"), 1.0])}
HALVED = {"name": "exponential", "gamma": 0.5}
ONE_CYCLE = {"name": "one_cycle", "max_lr": 0.5, "total_steps": STEPS}

Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


class Case(NamedTuple):
    """A session's schedule and optimizer, and torch's."""

    schedule: Mapping[str, Any]
    torchs: Scheduler
    optimizer: str = "sgd"
    hyper: Mapping[str, Any] = {"lr": 0.1, "momentum": 0.9}


def warm(then: Scheduler, steps: int, start: float = 1 / 3) -> Scheduler:
    """Torch's way to say a warm-up."""
    return lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, start, total_iters=steps), then(opt)], [steps]
    )


def one_cycle(opt: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(opt, 0.5, STEPS)


def after_ten(opt: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.ConstantLR(opt, 0.5, 100), lr_scheduler.ExponentialLR(opt, 0.9)]
    return lr_scheduler.SequentialLR(opt, parts, [10])


CASES: Mapping[str, Case] = {
    "cosine": Case({"name": "cosine", "total_steps": 40}, lambda opt: lr_scheduler.CosineAnnealingLR(opt, 40)),
    "cosine, warmed up": Case(
        {"name": "cosine", "total_steps": 40, "warmup_steps": 8},
        warm(lambda opt: lr_scheduler.CosineAnnealingLR(opt, 32), 8),
        "adamw",
        {"lr": 0.1, "betas": [0.9, 0.99]},
    ),
    "step, warmed up from a tenth": Case(
        {"name": "step", "step_size": 7, "warmup_steps": 5, "warmup_start_factor": 0.1},
        warm(lambda opt: lr_scheduler.StepLR(opt, 7), 5, 0.1),
    ),
    "multistep": Case(
        {"name": "multistep", "milestones": [3, 9, 21], "gamma": 0.5},
        lambda opt: lr_scheduler.MultiStepLR(opt, [3, 9, 21], 0.5),
    ),
    "one_cycle over betas": Case(ONE_CYCLE, one_cycle, "adam", {"lr": 0.1, "betas": [0.9, 0.99]}),
    "one_cycle over momentum": Case(ONE_CYCLE, one_cycle),
    "one_cycle that switches momentum on": Case(ONE_CYCLE, one_cycle, "sgd", {"lr": 0.1}),
    "cyclic": Case(
        {"name": "cyclic", "base_lr": 0.01, "max_lr": 0.3, "step_size_up": 4, "mode": "triangular2"},
        lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.3, 4, mode="triangular2"),
        "rmsprop",
        {"lr": 0.1},
    ),
    "sequential": Case(
        {
            "name": "sequential",
            "milestones": [10],
            "schedules": [
                {"name": "constant", "factor": 0.5, "total_iters": 100},
                {"name": "exponential", "gamma": 0.9},
            ],
        },
        after_ten,
    ),
    "chained": Case(
        {
            "name": "chained",
            "schedules": [{"name": "exponential", "gamma": 0.95}, {"name": "step", "step_size": 6, "gamma": 0.5}],
        },
        lambda opt: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ExponentialLR(opt, 0.95), lr_scheduler.StepLR(opt, 6, 0.5)]
        ),
    ),
}
NAMES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}


def lrs(subject: Subject, pushes: int, **metadata: str) -> list[float]:
    return [receipt_of(subject.push(**metadata))["lr"] for _ in range(pushes)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_scheduled_session_is_a_torch_optimizer_with_its_scheduler(http: httpx.Client, case: Case) -> None:
    hyper = dict(case.hyper)
    subject = Subject.create(http, case.optimizer, params=PRECISE, groups=GROUPS, schedule=dict(case.schedule), **hyper)
    local = Local(lambda groups: NAMES[case.optimizer](groups, **hyper), own={"bias": {"lr": 0.01}})  # type: ignore[operator]  # four classes, one call
    scheduler = case.torchs(local.optimizer)
    expected, received = [], []
    for grads in gradients(STEPS):
        expected.append(local.lr())
        received.append(receipt_of(subject.push(grads))["lr"])
        local.step(grads)
        if len(expected) < STEPS:
            scheduler.step()
    assert received == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert [row["lr"] for row in subject.steps()] == received
    assert_close(subject.pull(), local.weights, rtol=1e-8, atol=1e-9)


def test_the_schedule_stands_in_the_session_and_leaves_its_hyperparameters_as_they_were(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=0.5, schedule=HALVED)
    assert lrs(subject, 2) == [0.5, 0.25]
    info = subject.info()
    assert info["schedule"] == {**HALVED, "warmup_steps": 0, "warmup_start_factor": pytest.approx(1 / 3)}
    assert info["hyperparameters"]["default"]["lr"] == 0.5
    assert Subject.create(http).info()["schedule"] is None


def test_a_skipped_step_does_not_advance_a_schedule(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, nonfinite="skip", schedule=HALVED)
    receipts = [receipt_of(subject.push(grads)) for grads in (GRADS, NAN, NAN, GRADS, GRADS)]
    assert [receipt["outcome"] for receipt in receipts].count("skipped_nonfinite") == 2
    # Of a skipped push: what it would have been stepped with.
    assert [receipt["lr"] for receipt in receipts] == [1.0, 0.5, 0.5, 0.5, 0.25]
    assert [row["lr"] for row in subject.steps()] == [1.0, 0.5, 0.25]


def test_a_refused_push_and_a_retried_one_do_not_advance_a_schedule(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, schedule=HALVED)
    first = receipt_of(subject.push(key="k"))
    assert_refused(subject.push(NAN), 422, "nonfinite-gradients")
    assert receipt_of(subject.push(key="k")) == {**first, "duplicate": True}
    assert lrs(subject, 1) == [0.5]


def test_buffered_pushes_are_one_update_of_a_schedule(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, accumulate={"steps": 3}, schedule=HALVED)
    assert lrs(subject, 7) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert [row["lr"] for row in subject.steps()] == [1.0, 0.5]


def test_what_comes_with_a_push_wins_for_that_step_and_the_schedule_goes_on(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", groups=GROUPS, lr=1.0, schedule=HALVED)
    before = subject.pull()
    overrides = {"lr": 8.0, "groups": {"biases": {"lr": 4.0}}}
    received = lrs(subject, 1), lrs(subject, 1, hyperparameters=json.dumps(overrides)), lrs(subject, 1)
    assert received == ([1.0], [8.0], [0.25])
    # 1 + 8 + ¼ for the weight; the biases begin at 0.01, have 4 of their own once, and go on with 0.01/4.
    expected = {
        "weight": before["weight"] - 9.25 * GRADS["weight"],
        "bias": before["bias"] - (0.01 + 4 + 0.0025) * GRADS["bias"],
    }
    assert_close(subject.pull(), expected, rtol=1e-5, atol=1e-6)


def test_an_override_of_something_else_leaves_the_scheduled_lr(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, schedule=HALVED)
    assert lrs(subject, 1) == [1.0]
    assert lrs(subject, 1, hyperparameters='{"weight_decay": 0.5}') == [0.5]


def test_a_change_of_lr_is_scheduled_from_there(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, schedule=HALVED)
    assert lrs(subject, 2) == [1.0, 0.5]
    http.patch(subject.path, json={"optimizer": {"lr": 8.0}})
    assert lrs(subject, 2) == [2.0, 1.0]


def test_a_replaced_schedule_begins_anew_and_null_ends_it(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, schedule=HALVED)
    assert lrs(subject, 3) == [1.0, 0.5, 0.25]
    changed = http.patch(subject.path, json={"schedule": {"name": "exponential", "gamma": 0.1}})
    assert changed.json()["schedule"]["gamma"] == 0.1
    assert lrs(subject, 2) == [1.0, 0.1]
    http.patch(subject.path, json={"nonfinite": "skip"})
    assert lrs(subject, 1) == pytest.approx([0.01])
    assert http.patch(subject.path, json={"schedule": None}).json()["schedule"] is None
    assert lrs(subject, 2) == [1.0, 1.0]
    assert [event["kind"] for event in subject.events()] == ["created", "changed", "changed", "changed"]


def test_reduce_on_plateau_follows_the_losses_that_are_pushed(http: httpx.Client) -> None:
    plateau = {"name": "reduce_on_plateau", "factor": 0.5, "patience": 2, "cooldown": 1, "threshold": 0.01}
    subject = Subject.create(http, "adam", params=PRECISE, groups=GROUPS, lr=0.1, schedule=plateau)
    local = Local(lambda groups: torch.optim.Adam(groups, lr=0.1), own={"bias": {"lr": 0.01}})
    scheduler = lr_scheduler.ReduceLROnPlateau(local.optimizer, factor=0.5, patience=2, cooldown=1, threshold=0.01)
    losses = [3.0, 2.0, 1.999, 1.998, 2.5, *[1.99] * 10, 1.0, *[1.5] * 14]
    expected, received = [], []
    for loss, grads in zip(losses, gradients(len(losses)), strict=True):
        expected.append(local.lr())
        received.append(receipt_of(subject.push(grads, loss=str(loss)))["lr"])
        local.step(grads)
        scheduler.step(loss)
    assert len(set(received)) > 4
    assert received == pytest.approx(expected, rel=1e-9)
    assert_close(subject.pull(), local.weights)


def test_a_plateau_does_not_look_at_the_loss_of_a_push_that_is_no_step(http: httpx.Client) -> None:
    plateau = {"name": "reduce_on_plateau", "factor": 0.5, "patience": 0}
    subject = Subject.create(http, "sgd", lr=1.0, nonfinite="skip", schedule=plateau)
    subject.push(loss="1.0")
    subject.push(NAN, loss="9.0")
    subject.push()
    assert lrs(subject, 1, loss="0.5") == [1.0]
    assert lrs(subject, 1, loss="0.6") == [1.0]
    assert lrs(subject, 1, loss="0.4") == [0.5]


def test_a_replaced_plateau_remembers_nothing_of_the_one_before(http: httpx.Client) -> None:
    plateau = {"name": "reduce_on_plateau", "factor": 0.5, "patience": 0}
    subject = Subject.create(http, "sgd", lr=1.0, schedule=plateau)
    assert lrs(subject, 3, loss="1.0") == [1.0, 1.0, 0.5]
    http.patch(subject.path, json={"schedule": plateau})
    # 2 is worse than the 1 that the old schedule saw, and the best that the new one has.
    assert lrs(subject, 2, loss="2.0") == [1.0, 1.0]
    assert lrs(subject, 1, loss="1.5") == [0.5]
    assert lrs(subject, 1, loss="1.5") == [0.5]
    assert lrs(subject, 1, loss="1.5") == [0.25]
