"""reduce_on_plateau against torch.optim.lr_scheduler.ReduceLROnPlateau, loss by loss."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optimd_service.optim.schedules import Schedule, advance, overrides

READER: TypeAdapter[Any] = TypeAdapter(Schedule)
SETTINGS: Mapping[str, dict[str, Any]] = {
    "defaults": {},
    "impatient": {"patience": 0, "factor": 0.9},
    "cooling down": {"patience": 2, "cooldown": 7, "factor": 0.5},
    "towards more": {"mode": "max", "patience": 3, "factor": 0.8},
    "absolute": {"threshold_mode": "abs", "threshold": 0.05, "patience": 4},
    "absolute, towards more": {"mode": "max", "threshold_mode": "abs", "threshold": 0.05, "patience": 4},
    "down to a floor": {"patience": 1, "factor": 0.7, "min_lr": 0.004},
    "a floor above one group": {"patience": 1, "factor": 0.7, "min_lr": 0.05},
    "eps stops it": {"patience": 0, "factor": 0.6, "eps": 1e-3},
    "eps stops the step to the floor": {"patience": 0, "factor": 0.5, "min_lr": 0.012, "eps": 1e-3},
    "every reduction made": {"patience": 0, "factor": 0.99, "eps": 0.0},
}
RATES = (0.1, 0.013)


def plateau(**fields: Any) -> Schedule:
    schedule: Schedule = READER.validate_python({"name": "reduce_on_plateau", **fields})
    return schedule


def losses(worst: float) -> list[float]:
    """A thousand that fall ever more slowly, with noise; two of them are no numbers."""
    random.seed(0)
    falling = [math.exp(-i / 150) + random.gauss(0, 0.1) for i in range(1_000)]
    falling[100], falling[101] = math.nan, worst
    return falling


def through(schedule: Schedule, memory: dict[str, float], *pushed: float | None) -> dict[str, float]:
    for loss in pushed:
        memory = advance(schedule, memory, loss)
    return memory


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_lr_falls_when_torchs_does_in_every_group(settings: dict[str, Any]) -> None:
    schedule, memory = plateau(**settings), dict[str, float]()
    opt = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in RATES])
    reference = ReduceLROnPlateau(opt, **settings)
    fallen = False
    for position, loss in enumerate(losses(-math.inf if settings.get("mode") == "max" else math.inf)):
        for lr, group in zip(RATES, opt.param_groups, strict=True):
            expected = {"lr": pytest.approx(group["lr"], rel=1e-9)}
            assert overrides(schedule, {"lr": lr}, position, memory) == expected, position
            fallen |= group["lr"] < lr
        opt.step()
        reference.step(loss)
        # Kept as JSON from one update to the next, as a journal keeps it.
        memory = json.loads(json.dumps(advance(schedule, memory, loss), allow_nan=False))
        assert memory["best"] == reference.best
        assert memory["num_bad_epochs"] == reference.num_bad_epochs
        assert memory["cooldown_counter"] == reference.cooldown_counter
    assert fallen


def test_an_update_without_a_loss_leaves_everything_as_it_is() -> None:
    schedule = plateau(patience=2, cooldown=3)
    assert advance(schedule, {}, None) == {}
    memory = through(schedule, {}, 1.0, 2.0, 2.0, 2.0)
    assert advance(schedule, memory, None) == memory


def test_the_memory_holds_only_finite_floats() -> None:
    memory = through(plateau(patience=0, warmup_steps=1), {}, 1, -math.inf, math.nan, 3, -math.inf)
    assert all(type(value) is float and math.isfinite(value) for value in memory.values())


def test_a_loss_that_is_no_number_is_bad_and_never_the_best() -> None:
    schedule = plateau(patience=1)
    memory = through(schedule, {}, math.nan, -math.inf)
    assert "best" not in memory
    assert memory["num_reductions"] == 1
    assert through(schedule, memory, 5.0)["best"] == 5.0


def test_advancing_leaves_the_memory_it_was_given_alone() -> None:
    schedule = plateau(patience=0)
    memory = through(schedule, {}, 1.0)
    before = dict(memory)
    advance(schedule, memory, 2.0)
    assert memory == before


def test_losses_of_the_warmup_are_not_judged() -> None:
    schedule = plateau(patience=0, warmup_steps=4, warmup_start_factor=0.0)
    memory: dict[str, float] = {}
    for position, loss in enumerate((1.0, None, 3.0, 4.0)):
        assert overrides(schedule, {"lr": 0.1}, position, memory)["lr"] == pytest.approx(0.1 * position / 4)
        memory = advance(schedule, memory, loss)
    assert memory == {"warmup_count": 4.0}
    memory = through(schedule, memory, 5.0)
    assert overrides(schedule, {"lr": 0.1}, 5, memory) == {"lr": 0.1}
    memory = through(schedule, memory, 5.0)
    assert overrides(schedule, {"lr": 0.1}, 6, memory) == {"lr": pytest.approx(0.01)}


def test_a_hundred_million_reductions_end_where_eps_stops_them() -> None:
    memory = {"best": 0.0, "num_bad_epochs": 0.0, "cooldown_counter": 0.0, "num_reductions": 1e8}
    lr = overrides(plateau(factor=0.5, eps=1e-3), {"lr": 0.1}, 10**9, memory)["lr"]
    assert lr == pytest.approx(0.1 * 0.5**6)  # 0.1·0.5⁶·(1 − 0.5) is 0.0008
