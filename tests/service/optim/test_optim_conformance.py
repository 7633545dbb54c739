"""Every optimizer × settings × dtype, held against torch.optim (for Lion, against the paper) tensor by tensor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim_references import SETTINGS, SHAPES, STEPS, FlatRun, Settings, deviation, gradients, layout_of, reference_run

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.catalogue import OPTIMIZERS, WORK_ROWS, find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.lion import lion_
from optimd_service.optim.sgd import sgd_
from optimd_service.optim.update import Here, new_scratch, update_

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
IMPLEMENTATIONS = {"sgd": [False, True], "adam": [False, True], "adamw": [False, True]}

every_setting = pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)


def cases() -> list[Any]:
    return [
        pytest.param(name, settings, dtype, implementation)
        for name, settings in SETTINGS
        for dtype in TOLERANCE
        for implementation in ([{"fused": fused} for fused in IMPLEMENTATIONS.get(name, [])] or [{}])
    ]


@pytest.mark.parametrize(("optimizer", "settings", "dtype", "implementation"), cases())
def test_weights_and_state_are_torchs_after_100_steps(
    optimizer: str, settings: Settings, dtype: torch.dtype, implementation: dict[str, bool]
) -> None:
    layout = layout_of(SHAPES, dtype)
    grads = gradients(layout, STEPS)
    run = FlatRun(optimizer, settings, layout)
    for flat in grads:
        run.step(flat)
    params, reference = reference_run(optimizer, settings, layout, grads, **implementation)

    kinds = {"params": (run.params, params)} | {
        name: (buffer, [reference.state[p][name] for p in params]) for name, buffer in run.state.items()
    }
    for kind, (flat, wanted) in kinds.items():
        for name, got, want in zip(layout.spans, layout.views(flat).values(), wanted, strict=True):
            assert deviation(got, want) <= TOLERANCE[dtype], (kind, name)
    kept = {name for name, value in reference.state[params[-1]].items() if value is not None}
    assert set(run.state) == kept - {"step"}


@every_setting
def test_the_same_gradients_give_the_same_bits(optimizer: str, settings: Settings) -> None:
    layout = layout_of(SHAPES)
    runs = [FlatRun(optimizer, settings, layout) for _ in range(2)]
    start = runs[0].params.clone()
    norms = [[run.step(flat) for flat in gradients(layout, 5)] for run in runs]
    assert torch.equal(runs[0].params, runs[1].params)
    assert norms[0] == norms[1]
    assert not torch.equal(runs[0].params, start)


@every_setting
def test_gradients_are_left_as_they_came(optimizer: str, settings: Settings) -> None:
    layout = layout_of(SHAPES)
    grads, before = gradients(layout, 1)[0], gradients(layout, 1)[0]
    run = FlatRun(optimizer, settings, layout)
    run.step(grads)
    run.step(grads)
    assert torch.equal(grads, before)


@every_setting
def test_a_parameter_without_gradient_stays_finite(optimizer: str, settings: Settings) -> None:
    run = FlatRun(optimizer, settings, layout_of([(100,), (3,)]))
    run.step(torch.zeros(103))
    assert run.params.isfinite().all()


def test_centered_rmsprop_survives_a_variance_that_rounds_below_zero() -> None:
    grads = torch.linspace(0.1, 1, 1000)
    run = FlatRun("rmsprop", {"centered": True, "alpha": 0.5}, layout_of([(500,), (500,)]))
    negative = 0
    for _ in range(60):
        run.step(grads)
        negative += int((run.state["square_avg"] - run.state["grad_avg"] ** 2 < 0).sum())
    assert negative
    assert run.params.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_buffer_of_another_length_is_refused(name: str) -> None:
    optimizer = find(name)
    hyper = optimizer.parse({"momentum": 0.9} if name in {"sgd", "rmsprop"} else {}, where="optimizer")
    state = {buffer: torch.zeros(4) for buffer in optimizer.state(hyper)}
    params = torch.ones(5)
    with pytest.raises(ShapeMismatch) as refusal:
        optimizer.step_(FlatGroup(params, torch.ones(5), state, step=1), hyper, [torch.zeros(5)] * WORK_ROWS)
    assert refusal.value.evidence == {"tensor": next(iter(state)), "expected": [5], "got": [4]}
    assert torch.equal(params, torch.ones(5))


def test_a_kernel_called_by_itself_refuses_wrong_shapes_before_it_writes() -> None:
    params, exp_avg = torch.ones(5), torch.zeros(5)
    with pytest.raises(ShapeMismatch, match="grads"):
        lion_(params, torch.ones(4), exp_avg, work=torch.empty(5), lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    assert torch.equal(params, torch.ones(5))
    assert torch.equal(exp_avg, torch.zeros(5))


def test_a_missing_buffer_is_noticed_before_a_weight_changes() -> None:
    optimizer, params = find("adamw"), torch.ones(5)
    group = FlatGroup(params, torch.ones(5), {"exp_avg": torch.zeros(5)}, step=1)
    with pytest.raises(KeyError, match="exp_avg_sq"):
        update_(optimizer, group, optimizer.parse({}, where="optimizer"), Here(new_scratch(5, torch.float32)))
    assert torch.equal(params, torch.ones(5))


def test_a_fresh_momentum_buffer_starts_as_the_gradient_whatever_it_held() -> None:
    params, buffer, grads = torch.zeros(3), torch.full((3,), math.nan), torch.tensor([1.0, 2.0, 3.0])
    settings = {"lr": 0.1, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.0, "nesterov": False}
    sgd_(params, grads, buffer, fresh=True, **settings)
    assert torch.equal(buffer, grads)
    sgd_(params, grads, buffer, fresh=False, **settings)
    assert torch.equal(buffer, grads)
    assert torch.allclose(params, -0.2 * grads)
