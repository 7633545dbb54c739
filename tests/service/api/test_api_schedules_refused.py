"""Schedules that are none, at creation and in a change."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from api_subject import JSON, WEIGHTS, Subject, assert_refused, lists

HALVED = {"name": "exponential", "gamma": 0.5}
ONE_CYCLE = {"name": "one_cycle", "max_lr": 0.5, "total_steps": 30}

WRONG: list[tuple[dict[str, Any] | int | str, str]] = [
    (1, "schedule"),
    ("cosine", "schedule"),
    ({}, "schedule.name"),
    ({"name": "cosinus"}, "schedule.name"),
    ({"name": "cosine"}, "schedule.total_steps"),
    ({"name": "cosine", "total_steps": 0}, "schedule.total_steps"),
    ({"name": "cosine", "total_steps": 2.5}, "schedule.total_steps"),
    ({"name": "cosine", "total_steps": 10, "warmup_steps": 10}, "schedule.total_steps"),
    ({"name": "cosine", "total_steps": 10, "T_max": 10}, "schedule.T_max"),
    ({"name": "cosine", "total_steps": 10, "eta_min": -1}, "schedule.eta_min"),
    ({"name": "step", "step_size": 1, "warmup_start_factor": 1.5}, "schedule.warmup_start_factor"),
    ({"name": "exponential", "gamma": 0}, "schedule.gamma"),
    ({"name": "exponential", "gamma": "0.5"}, "schedule.gamma"),
    ({**ONE_CYCLE, "max_momentum": 1}, "schedule.max_momentum"),
    ({**ONE_CYCLE, "base_momentum": 0.96}, "schedule.max_momentum"),
    ({"name": "reduce_on_plateau", "mode": "least"}, "schedule.mode"),
    ({"name": "sequential", "schedules": [HALVED], "milestones": [1]}, "schedule.milestones"),
    (
        {"name": "sequential", "schedules": [HALVED, {"name": "step"}], "milestones": [1]},
        "schedule.schedules.1.step_size",
    ),
    ({"name": "sequential", "schedules": [{"name": "what"}], "milestones": []}, "schedule.schedules.0.name"),
    ({"name": "chained", "schedules": [ONE_CYCLE]}, "schedule.schedules.0.name"),
]


@pytest.mark.parametrize(("schedule", "field"), WRONG, ids=lambda case: str(case)[:60])
def test_a_schedule_that_is_none_is_refused_by_its_field(http: httpx.Client, schedule: Any, field: str) -> None:
    subject = Subject.create(http)
    before, sessions = subject.stands(), http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "schedule": schedule}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions
    change = json.dumps({"name": "new", "schedule": schedule})
    assert_refused(http.patch(subject.path, content=change, headers=JSON), 422, "invalid-field", field=field)
    assert subject.stands() == before
