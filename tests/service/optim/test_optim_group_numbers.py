"""What optimizers remember of a whole group in single numbers, and the averages of weights that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from optim_paper_references import ASGD, Prodigy
from optim_references import FlatRun, Settings, deviation, gradients, layout_of
from torch import Tensor

from optimd_service.optim.catalogue import find
from optimd_service.optim.schedule_free import evaluation_weights

F64 = torch.float64
STEEPNESS = torch.linspace(0.5, 2, 40, dtype=F64)


def alone(name: str, settings: Settings, block: int | None = None) -> FlatRun:
    """A run of one tensor of forty weights, in float64."""
    return FlatRun(name, settings, layout_of([(40,)], F64), block)


def parabolas_slope(p: Tensor) -> Tensor:
    return STEEPNESS * (p - 3)


def change(run: FlatRun, **values: Any) -> None:
    """Change hyperparameters of a run that is under way."""
    parse = find(run.optimizer.name).parse
    run.hyper = {group: parse({**dict(hyper), **values}, where=group) for group, hyper in run.hyper.items()}


def test_asgd_takes_up_a_changed_rate_one_update_later_as_torch_does() -> None:
    settings: Mapping[str, Any] = {"lr": 0.1, "lambd": 0.01, "t0": 3}
    run = alone("asgd", settings)
    p = run.params.clone()
    reference = ASGD([p], **settings)
    for step, grads in enumerate(gradients(run.layout, 8)):
        if step == 4:
            change(run, lr=0.01)
            reference.param_groups[0]["lr"] = 0.01
        p.grad = grads.clone()
        reference.step()
        run.step(grads)
        assert deviation(run.params, p) <= 1e-14
        assert deviation(run.flat["ax"], reference.state[p]["ax"]) <= 1e-14
        for number in ("eta", "mu"):
            assert run.numbers["default"][number] == pytest.approx(reference.state[p][number].item(), rel=1e-14)


@pytest.mark.parametrize(
    ("name", "settings", "beta"),
    [
        ("schedule_free_sgd", {"lr": 0.1, "momentum": 0.8}, 0.8),
        ("schedule_free_sgd", {"lr": 0.1, "warmup_steps": 10, "r": 1.0}, 0.9),
        ("schedule_free_adamw", {"lr": 0.1, "warmup_steps": 10, "weight_lr_power": 1.0}, 0.9),
    ],
)
def test_evaluation_weights_are_the_weighted_mean_of_all_z(name: str, settings: Settings, beta: float) -> None:
    run, powers = alone(name, settings), {"r": 0.0, "weight_lr_power": 2.0, "warmup_steps": 0, **settings}
    mean, total = torch.zeros(40, dtype=F64), 0.0
    for t in range(1, 21):
        run.step(parabolas_slope(run.params))
        weight = t ** powers["r"] * (0.1 * min(1, t / max(1, powers["warmup_steps"]))) ** powers["weight_lr_power"]
        total += weight
        mean += weight * run.flat["z"]
        assert deviation(evaluation_weights(run.params, run.flat["z"], beta), mean / total) <= 1e-13


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_rests_while_a_schedule_holds_lr_at_0(name: str) -> None:
    run = alone(name, {"lr": 0.0})
    start = run.params.clone()
    run.step(torch.ones(40, dtype=F64))
    assert torch.equal(run.params, start)
    change(run, lr=0.1)
    run.step(torch.ones(40, dtype=F64))
    assert not torch.equal(run.params, start)
    assert deviation(evaluation_weights(run.params, run.flat["z"], 0.9), run.flat["z"]) <= 1e-14


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_bias_correction": True, "weight_decay": 0.01, "growth_rate": 1.5},
        {"lr": 0.5, "safeguard_warmup": True, "d0": 1e-4, "d_coef": 2.0, "beta3": 0.99},
    ],
)
def test_prodigys_estimate_grows_as_the_papers_does(settings: Settings) -> None:
    run = alone("prodigy", settings)
    p = run.params.clone()
    reference = Prodigy([p], **run.hyper["default"].model_dump())
    for _ in range(60):
        run.step(parabolas_slope(run.params))
        p.grad = parabolas_slope(p)
        reference.step()
        assert run.numbers["default"]["d"] == pytest.approx(reference.d, rel=1e-9)
    assert reference.d > 100 * run.hyper["default"].d0
    assert deviation(run.params, p) <= 1e-9


@pytest.mark.parametrize("block", [7, 40])
def test_prodigys_estimate_is_of_the_whole_group_however_it_is_cut(block: int) -> None:
    run, whole = alone("prodigy", {}, block), alone("prodigy", {})
    start = run.params.clone()
    for _ in range(40):
        grads = parabolas_slope(whole.params)
        run.step(grads)
        whole.step(grads)
    assert run.numbers["default"] == pytest.approx(whole.numbers["default"], rel=1e-9)
    assert torch.equal(run.flat["p0"], start)


def test_prodigy_learns_nothing_from_gradients_of_0_or_while_lr_is_0() -> None:
    run = alone("prodigy", {"weight_decay": 0.1})
    start = run.params.clone()
    run.step(torch.zeros(40, dtype=F64))
    change(run, lr=0.0)
    run.step(torch.ones(40, dtype=F64))
    assert torch.equal(run.params, start)
    assert run.numbers["default"] == {"d": 1e-6, "d_max": 1e-6, "d_numerator": 0.0, "d_lr": 0.0}
    assert not run.flat["exp_avg"].any()


def test_adans_first_difference_of_gradients_is_0_whatever_the_buffer_held() -> None:
    run = FlatRun("adan", {}, layout_of([(7,)]), block=3)
    run.flat["neg_pre_grad"].fill_(torch.nan)
    run.step(torch.ones(7))
    assert torch.equal(run.flat["exp_avg_diff"], torch.zeros(7))


def test_ademamix_warms_up_from_a_beta_of_0() -> None:
    run = alone("ademamix", {"betas": (0.0, 0.99, 0.9), "beta3_warmup": 2})
    run.step(torch.ones(40, dtype=F64))
    # Halfway in memory, 1/ln β₃: β₃² in place of β₃.
    assert run.flat["exp_avg_slow"][0].item() == pytest.approx(1 - 0.9**2)
