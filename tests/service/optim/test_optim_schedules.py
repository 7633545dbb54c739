"""Every schedule against torch.optim.lr_scheduler's own, stepping a real optimizer, update by update."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler as theirs
from torch.optim.lr_scheduler import LRScheduler

from optimd_service.optim.schedules import SCHEDULES, Schedule, advance, overrides

STEPS = 1_000
RELATIVE = 1e-9
# Where a curve touches 0, torch's running product and a formula leave different dust.
DUST = 1e-16
WARMUP = {"warmup_steps": 40, "warmup_start_factor": 0.1}

Factory = Callable[[torch.optim.Optimizer], LRScheduler]
READER: TypeAdapter[Any] = TypeAdapter(Schedule)
SGD = {"lr": 0.1, "momentum": 0.7}
ADAM = {"lr": 0.1, "betas": (0.6, 0.99)}


class Case(NamedTuple):
    """A schedule of ours and the reference that it equals."""

    ours: Mapping[str, Any]
    reference: Factory
    base: Mapping[str, Any] = SGD
    until: int = STEPS


def inverse_sqrt(opt: torch.optim.Optimizer) -> LRScheduler:
    return theirs.LambdaLR(opt, lambda t: (300 / (t + 300)) ** 0.5)


def stable_decay(shape: Callable[[float], float], least: float) -> Factory:
    def factor(t: int) -> float:
        return 1.0 if t <= 500 else least + (1 - least) * shape(min((t - 500) / 200, 1))

    return lambda opt: theirs.LambdaLR(opt, factor)


def one_cycle(steps: int = STEPS, **arguments: Any) -> Factory:
    return lambda opt: theirs.OneCycleLR(opt, max_lr=2.0, total_steps=steps, **arguments)


def cyclic(**arguments: Any) -> Factory:
    return lambda opt: theirs.CyclicLR(opt, base_lr=0.01, max_lr=0.4, **arguments)


ONE_CYCLE = {"name": "one_cycle", "max_lr": 2.0, "total_steps": STEPS}
CYCLIC = {"name": "cyclic", "base_lr": 0.01, "max_lr": 0.4}
STABLE = {"name": "warmup_stable_decay", "total_steps": 700, "decay_steps": 200}

PLAIN: Mapping[str, Case] = {
    "constant": Case({"name": "constant"}, theirs.ConstantLR),
    "constant, long": Case(
        {"name": "constant", "factor": 0.2, "total_iters": 300},
        lambda opt: theirs.ConstantLR(opt, factor=0.2, total_iters=300),
    ),
    "step": Case({"name": "step", "step_size": 90}, lambda opt: theirs.StepLR(opt, 90)),
    "step, growing": Case({"name": "step", "step_size": 7, "gamma": 1.1}, lambda opt: theirs.StepLR(opt, 7, gamma=1.1)),
    "multistep": Case(
        {"name": "multistep", "milestones": [0, 30, 30, 500], "gamma": 0.3},
        lambda opt: theirs.MultiStepLR(opt, [0, 30, 30, 500], gamma=0.3),
    ),
    "exponential": Case({"name": "exponential", "gamma": 0.97}, lambda opt: theirs.ExponentialLR(opt, 0.97)),
    "linear": Case({"name": "linear"}, theirs.LinearLR),
    "linear, falling": Case(
        {"name": "linear", "start_factor": 0.9, "end_factor": 0.0, "total_iters": 400},
        lambda opt: theirs.LinearLR(opt, start_factor=0.9, end_factor=0.0, total_iters=400),
    ),
    "polynomial": Case({"name": "polynomial"}, theirs.PolynomialLR),
    "polynomial, cubic": Case(
        {"name": "polynomial", "total_iters": 777, "power": 3.0},
        lambda opt: theirs.PolynomialLR(opt, total_iters=777, power=3.0),
    ),
    "cosine": Case({"name": "cosine", "total_steps": STEPS}, lambda opt: theirs.CosineAnnealingLR(opt, STEPS)),
    "cosine, far beyond its end": Case(
        {"name": "cosine", "total_steps": 130, "eta_min": 0.003},
        lambda opt: theirs.CosineAnnealingLR(opt, 130, eta_min=0.003),
    ),
    "cosine, of one step": Case({"name": "cosine", "total_steps": 1}, lambda opt: theirs.CosineAnnealingLR(opt, 1)),
    "cosine_restarts": Case(
        {"name": "cosine_restarts", "t_0": 60}, lambda opt: theirs.CosineAnnealingWarmRestarts(opt, 60)
    ),
    "cosine_restarts, longer and longer": Case(
        {"name": "cosine_restarts", "t_0": 7, "t_mult": 3, "eta_min": 0.01},
        lambda opt: theirs.CosineAnnealingWarmRestarts(opt, 7, T_mult=3, eta_min=0.01),
    ),
    "one_cycle": Case(ONE_CYCLE, one_cycle()),
    "one_cycle, Adam": Case(ONE_CYCLE, one_cycle(), ADAM),
    "one_cycle, no momentum": Case({**ONE_CYCLE, "cycle_momentum": False}, one_cycle(cycle_momentum=False)),
    "one_cycle, three lines": Case(
        {**ONE_CYCLE, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.4, "div_factor": 4.0},
        one_cycle(three_phase=True, anneal_strategy="linear", pct_start=0.4, div_factor=4.0),
        ADAM,
    ),
    "one_cycle, no rise": Case({**ONE_CYCLE, "pct_start": 0.0}, one_cycle(pct_start=0.0)),
    "one_cycle, all rise": Case({**ONE_CYCLE, "pct_start": 1.0}, one_cycle(pct_start=1.0)),
    "one_cycle, phases of no length": Case(
        {**ONE_CYCLE, "pct_start": 0.0004, "three_phase": True}, one_cycle(pct_start=0.0004, three_phase=True)
    ),
    "one_cycle, short": Case(
        {**ONE_CYCLE, "total_steps": 77, "final_div_factor": 0.5, "base_momentum": 0.1, "max_momentum": 0.2},
        one_cycle(77, final_div_factor=0.5, base_momentum=0.1, max_momentum=0.2),
        until=77,
    ),
    "cyclic": Case(CYCLIC, cyclic()),
    "cyclic, uneven, Adam": Case(
        {**CYCLIC, "step_size_up": 33, "step_size_down": 71}, cyclic(step_size_up=33, step_size_down=71), ADAM
    ),
    "cyclic, triangular2": Case(
        {**CYCLIC, "mode": "triangular2", "step_size_up": 21, "base_momentum": 0.5, "max_momentum": 0.99},
        cyclic(mode="triangular2", step_size_up=21, base_momentum=0.5, max_momentum=0.99),
    ),
    "cyclic, exp_range": Case(
        {**CYCLIC, "mode": "exp_range", "gamma": 0.995, "step_size_up": 50},
        cyclic(mode="exp_range", gamma=0.995, step_size_up=50),
    ),
    "inverse_sqrt": Case({"name": "inverse_sqrt", "timescale": 300}, inverse_sqrt),
    "warmup_stable_decay": Case(STABLE, stable_decay(lambda u: 1 - u, 0.0)),
    "warmup_stable_decay, 1-sqrt": Case(
        {**STABLE, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}, stable_decay(lambda u: 1 - u**0.5, 0.1)
    ),
    "warmup_stable_decay, cosine": Case(
        {**STABLE, "decay_type": "cosine"},
        lambda opt: theirs.SequentialLR(
            opt,
            [theirs.ConstantLR(opt, 1.0), theirs.CosineAnnealingLR(opt, 200)],
            [500],
        ),
        until=700,
    ),
}

# Its reference is a SequentialLR, which torch does not put behind another.
WARMABLE = {name: case for name, case in PLAIN.items() if name != "warmup_stable_decay, cosine"}

CHAINING: Mapping[str, Case] = {
    "sequential": Case(
        {
            "name": "sequential",
            "schedules": [
                {"name": "constant", "factor": 0.5, "total_iters": 20},
                {"name": "cosine", "total_steps": 170, "eta_min": 0.001},
                {"name": "cosine_restarts", "t_0": 25},
                {"name": "exponential", "gamma": 0.99},
            ],
            "milestones": [90, 300, 633],
        },
        lambda opt: theirs.SequentialLR(
            opt,
            [
                theirs.ConstantLR(opt, factor=0.5, total_iters=20),
                theirs.CosineAnnealingLR(opt, 170, eta_min=0.001),
                theirs.CosineAnnealingWarmRestarts(opt, 25),
                theirs.ExponentialLR(opt, 0.99),
            ],
            [90, 300, 633],
        ),
    ),
    "sequential, into a cycle": Case(
        {
            "name": "sequential",
            "schedules": [
                {"name": "linear", "total_iters": 50},
                {**CYCLIC, "step_size_up": 30, "cycle_momentum": False},
            ],
            "milestones": [50],
        },
        lambda opt: theirs.SequentialLR(
            opt,
            [theirs.LinearLR(opt, total_iters=50), cyclic(step_size_up=30, cycle_momentum=False)(opt)],
            [50],
        ),
    ),
    "chained": Case(
        {
            "name": "chained",
            "schedules": [
                {"name": "linear", "start_factor": 0.2, "total_iters": 100},
                {"name": "exponential", "gamma": 0.998},
                {"name": "multistep", "milestones": [250, 700], "gamma": 0.5},
                {"name": "cosine", "total_steps": STEPS},
            ],
        },
        lambda opt: theirs.ChainedScheduler(
            [
                theirs.LinearLR(opt, start_factor=0.2, total_iters=100),
                theirs.ExponentialLR(opt, 0.998),
                theirs.MultiStepLR(opt, [250, 700], gamma=0.5),
                theirs.CosineAnnealingLR(opt, STEPS),
            ]
        ),
    ),
    "chained, then another": Case(
        {
            "name": "sequential",
            "schedules": [
                {
                    "name": "chained",
                    "schedules": [{"name": "step", "step_size": 10, "gamma": 0.8}, {"name": "linear"}],
                },
                {"name": "constant"},
            ],
            "milestones": [60],
        },
        lambda opt: theirs.SequentialLR(
            opt,
            [
                theirs.ChainedScheduler([theirs.StepLR(opt, 10, gamma=0.8), theirs.LinearLR(opt)]),
                theirs.ConstantLR(opt),
            ],
            [60],
        ),
    ),
}


def warmed(case: Case) -> Case:
    """The same with a warm-up in front; where total_steps counts everything, it grows by as much."""

    def reference(opt: torch.optim.Optimizer) -> LRScheduler:
        schedule = case.reference(opt)
        warmup = theirs.LinearLR(opt, WARMUP["warmup_start_factor"], total_iters=int(WARMUP["warmup_steps"]))
        return theirs.SequentialLR(opt, [warmup, schedule], [int(WARMUP["warmup_steps"])])

    steps = int(WARMUP["warmup_steps"])
    longer = {"total_steps": case.ours["total_steps"] + steps} if "total_steps" in case.ours else {}
    return case._replace(ours={**case.ours, **WARMUP, **longer}, reference=reference, until=case.until + steps)


def read(fields: Mapping[str, Any]) -> Schedule:
    schedule: Schedule = READER.validate_json(json.dumps(fields))
    return schedule


def optimizer(base: Mapping[str, Any]) -> torch.optim.Optimizer:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    return torch.optim.Adam(weights, **base) if "betas" in base else torch.optim.SGD(weights, **base)


def their_sequence(case: Case) -> list[dict[str, Any]]:
    """The hyperparameters that torch's optimizer has at each update."""
    opt = optimizer(case.base)
    found = []
    with warnings.catch_warnings():
        # torch's own at a chain that a sequence begins with.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule = case.reference(opt)
        for position in range(case.until):
            if position:
                opt.step()
                schedule.step()
            found.append({name: opt.param_groups[0][name] for name in case.base})
    return found


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], position: int) -> None:
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=RELATIVE, abs=DUST), (name, position)


@pytest.mark.parametrize("case", (PLAIN | CHAINING).values(), ids=PLAIN | CHAINING)
def test_a_schedule_gives_torchs_own_sequence(case: Case) -> None:
    schedule = read(case.ours)
    for position, expected in enumerate(their_sequence(case)):
        assert_same({**case.base, **overrides(schedule, case.base, position, {})}, expected, position)


@pytest.mark.parametrize("case", [warmed(case) for case in WARMABLE.values()], ids=WARMABLE)
def test_a_warmup_in_front_is_a_sequential_of_a_line_and_the_schedule(case: Case) -> None:
    test_a_schedule_gives_torchs_own_sequence(case)


def test_every_schedule_stands_in_the_tables() -> None:
    compared = {case.ours["name"] for case in (PLAIN | CHAINING).values()}
    assert compared | {"reduce_on_plateau"} == set(SCHEDULES)


def test_the_warmup_of_a_cycle_keeps_momentum_where_the_cycle_begins() -> None:
    schedule = read({**ONE_CYCLE, **WARMUP})
    assert overrides(schedule, SGD, 0, {}) == {"lr": pytest.approx(0.1 * 2.0 / 25), "momentum": 0.95}
    assert overrides(schedule, ADAM, 39, {})["betas"] == (0.95, 0.99)


def test_a_cycle_leaves_an_optimizer_without_momentum_its_hyperparameters() -> None:
    assert overrides(read(ONE_CYCLE), {"lr": 0.1, "eps": 1e-8}, 3, {}).keys() == {"lr"}


def test_without_cycled_momentum_lr_is_all_that_a_cycle_sets() -> None:
    assert overrides(read({**CYCLIC, "cycle_momentum": False}), ADAM, 3, {}).keys() == {"lr"}


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_one_cycle_stays_where_it_ended(steps: int) -> None:
    schedule = read({**ONE_CYCLE, "total_steps": steps, "anneal_strategy": "linear", "pct_start": 0.2})
    at_the_end = overrides(schedule, SGD, steps - 1, {})
    assert at_the_end["lr"] == pytest.approx(2.0 / 25 / 1e4)
    assert overrides(schedule, SGD, steps, {}) == overrides(schedule, SGD, 10**7, {}) == at_the_end


def test_a_sequence_gives_momentum_only_while_a_cycle_runs() -> None:
    schedule = read(
        {
            "name": "sequential",
            "schedules": [{**ONE_CYCLE, "total_steps": 10}, {"name": "exponential", "gamma": 0.9}],
            "milestones": [10],
        }
    )
    assert overrides(schedule, SGD, 9, {})["momentum"] == pytest.approx(0.95)
    assert overrides(schedule, SGD, 10, {}) == {"lr": 0.1}


def test_a_cosine_in_a_chain_behind_its_end_stays_a_factor() -> None:
    cosine, falling = {"name": "cosine", "total_steps": 100}, {"name": "exponential", "gamma": 0.99}
    both = overrides(read({"name": "chained", "schedules": [cosine, falling]}), SGD, 150, {})
    assert both["lr"] == pytest.approx(0.1 * 0.5 * 0.99**150)


PERIODIC = {
    "cosine": ({"name": "cosine", "total_steps": 100}, 200),
    "cosine_restarts": ({"name": "cosine_restarts", "t_0": 100}, 100),
    "cyclic": ({**CYCLIC, "step_size_up": 30, "step_size_down": 70}, 100),
}


@pytest.mark.parametrize(("fields", "period"), PERIODIC.values(), ids=PERIODIC)
def test_ten_million_updates_on_a_periodic_schedule_is_to_the_bit_where_it_was(
    fields: Mapping[str, Any], period: int
) -> None:
    schedule = read(fields)
    for position in (0, 13, 30, 31, 99):
        far = position + 10**7 // period * period
        assert overrides(schedule, SGD, far, {}) == overrides(schedule, SGD, position, {})


def test_restarts_ten_million_updates_on_lie_where_counting_one_by_one_puts_them() -> None:
    begins, length = 0, 10
    while begins + length <= 10**7:
        begins, length = begins + length, length * 2
    schedule = read({"name": "cosine_restarts", "t_0": 10, "t_mult": 2})
    assert overrides(schedule, SGD, begins, {})["lr"] == 0.1
    assert overrides(schedule, SGD, begins + length // 2, {})["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("name", PLAIN | CHAINING)
@pytest.mark.parametrize("position", [10**7, 2**53])
def test_lr_is_a_finite_number_in_bounds_however_far(name: str, position: int) -> None:
    case = (PLAIN | CHAINING)[name]
    assert 0 <= overrides(read(case.ours), case.base, position, {})["lr"] <= 1e18


def test_growth_ends_at_the_largest_lr_there_is() -> None:
    growing = {"name": "exponential", "gamma": 10.0}
    for fields in (growing, {"name": "chained", "schedules": [growing, growing, {"name": "polynomial"}]}):
        schedule = read(fields)
        assert overrides(schedule, SGD, 4, {})["lr"] > 0
        assert overrides(schedule, {"lr": 0.0}, 10**7, {}) == {"lr": 0.0}
    assert overrides(read(growing), SGD, 10**7, {}) == {"lr": 1e18}


@pytest.mark.parametrize("name", PLAIN | CHAINING)
def test_a_schedule_of_the_position_alone_remembers_nothing(name: str) -> None:
    assert advance(read((PLAIN | CHAINING)[name].ours), {}, 0.5) == {}


@pytest.mark.parametrize("name", PLAIN | CHAINING)
def test_a_schedule_read_back_from_its_own_json_is_the_same(name: str) -> None:
    schedule = read((PLAIN | CHAINING)[name].ours)
    assert READER.validate_json(READER.dump_json(schedule)) == schedule
