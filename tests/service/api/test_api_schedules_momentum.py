"""Schedules that cycle momentum, and the buffers that this needs: no push may fail for want of one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients
from api_subject import GRADS, WEIGHTS, Subject, lists, receipt_of
from torch.optim import lr_scheduler

ONE_CYCLE = {"name": "one_cycle", "max_lr": 0.5, "total_steps": 30}
FROM_ZERO = {"name": "inverse_sqrt", "warmup_steps": 2, "warmup_start_factor": 0}


def lrs(subject: Subject, pushes: int, **metadata: str) -> list[float]:
    return [receipt_of(subject.push(**metadata))["lr"] for _ in range(pushes)]


def test_a_schedule_that_comes_later_may_switch_momentum_on(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=PRECISE, lr=0.1)
    local = Local(lambda groups: torch.optim.SGD(groups, lr=0.1))
    pushed = list(gradients(9))
    for grads in pushed[:3]:
        subject.push(grads)
        local.step(grads)
    assert http.patch(subject.path, json={"schedule": {**ONE_CYCLE, "total_steps": 6}}).status_code == 200
    scheduler = lr_scheduler.OneCycleLR(local.optimizer, 0.5, 6)
    for grads in pushed[3:]:
        assert receipt_of(subject.push(grads))["outcome"] == "applied"
        local.step(grads)
        scheduler.step()
    assert_close(subject.pull(), local.weights)


def test_a_part_of_a_sequence_may_switch_momentum_on(http: httpx.Client) -> None:
    parts = [{"name": "constant", "factor": 1.0}, {**ONE_CYCLE, "total_steps": 4}, {"name": "constant", "factor": 1.0}]
    schedule = {"name": "sequential", "schedules": parts, "milestones": [2, 6]}
    subject = Subject.create(http, "sgd", lr=0.1, schedule=schedule)
    receipts = [receipt_of(subject.push()) for _ in range(9)]
    assert {receipt["outcome"] for receipt in receipts} == {"applied"}
    assert receipts[3]["lr"] == pytest.approx(0.5, rel=0.5)
    assert receipts[-1]["lr"] == 0.1


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_state_in_few_bytes_has_room_for_momentum_that_a_schedule_switches_on(
    http: httpx.Client, state_dtype: str
) -> None:
    optimizer, cycle = {"name": "sgd", "lr": 0.1}, {**ONE_CYCLE, "total_steps": 8}
    body = {"optimizer": optimizer, "params": lists(WEIGHTS), "schedule": cycle, "state_dtype": state_dtype}
    subject = Subject(http, http.post("/v1/sessions", json=body).headers["location"])
    assert len(set(lrs(subject, 4))) == 4


def test_a_schedule_goes_on_over_another_optimizer(http: httpx.Client) -> None:
    subject = Subject.create(http, "adam", lr=1.0, schedule={**ONE_CYCLE, "total_steps": 12})
    plain = Subject.create(http, "sgd", lr=1.0, schedule={**ONE_CYCLE, "total_steps": 12})
    before = lrs(subject, 3)
    assert http.put(f"{subject.path}/optimizer", json={"name": "sgd", "lr": 1.0}).status_code == 200
    assert [*before, *lrs(subject, 4)] == lrs(plain, 7)


def test_memory_for_a_buffer_that_a_schedule_will_need_is_taken_at_creation(http: httpx.Client) -> None:
    plain, cycled = Subject.create(http, "sgd"), Subject.create(http, "sgd", schedule=ONE_CYCLE)
    assert cycled.info()["bytes"] - plain.info()["bytes"] == 8 * 4
    subject = cycled.info()["bytes"]
    cycled.push()
    assert cycled.info()["bytes"] == subject


@pytest.mark.parametrize("schedule", [ONE_CYCLE, FROM_ZERO], ids=["one_cycle", "from 0"])
def test_every_optimizer_can_be_scheduled(http: httpx.Client, schedule: dict[str, Any]) -> None:
    for row in http.get("/v1/optimizers").json()["optimizers"]:
        tensors = {"weight": WEIGHTS["weight"]}  # muon and its like take matrices alone
        subject = Subject.create(http, row["name"], params=tensors, schedule=schedule)
        receipts = [receipt_of(subject.push({"weight": GRADS["weight"]})) for _ in range(4)]
        assert [receipt["outcome"] for receipt in receipts] == ["applied"] * 4, row["name"]
        assert len({receipt["lr"] for receipt in receipts}) > 1, row["name"]
        assert all(torch.isfinite(subject.pull()["weight"]).flatten()), row["name"]
