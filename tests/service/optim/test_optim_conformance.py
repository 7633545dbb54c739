"""Every optimizer × settings × dtype, held tensor by tensor against its reference in the table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim_references import (
    ROW,
    ROWS,
    SETTINGS,
    STEPS,
    FlatRun,
    Row,
    Settings,
    deviation,
    gradients,
    layout_of,
    reference_run,
)
from optim_tensor_references import REFERENCES as TENSOR_WISE
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.catalogue import OPTIMIZERS, find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.update import Here, update_

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
# dtype of the gradients → dtype of everything else, and the deviation allowed. Gradients in bfloat16 are rounded before
# either side sees them, and every bfloat16 is a float32: the arithmetic is as exact as with float32 gradients.
KINDS = {F32: (F32, 1e-6), F64: (F64, 1e-12), BF16: (F32, 1e-6)}

every_setting = pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)


def cases() -> list[Any]:
    return [
        pytest.param(row, settings, wire, variant, id=f"{row.name}-{i}-{str(wire)[6:]}-{j}")
        for row in ROWS
        for i, settings in enumerate(row.settings)
        for wire in KINDS
        for j, variant in enumerate(row.variants)
    ]


@pytest.mark.parametrize(("row", "settings", "wire", "variant"), cases())
def test_weights_and_state_are_the_references_after_100_steps(
    row: Row, settings: Settings, wire: torch.dtype, variant: Settings
) -> None:
    dtype, tolerance = KINDS[wire]
    layout = layout_of(row.shapes, dtype)
    grads = [flat.to(wire) for flat in gradients(layout, STEPS)]
    run = FlatRun(row.name, settings, layout)
    largest: dict[tuple[str, str], float] = {}
    for i, flat in enumerate(grads):
        run.step(flat)
        if i % 10 == 0:
            for key, value in everything(run).items():
                largest[key] = max(largest.get(key, 0.0), size(value))
    params, reference = reference_run(row, settings, layout, grads, variant)
    for (kind, tensor), got in everything(run).items():
        theirs = params[tensor] if kind == "params" else reference[tensor][row.state_names.get(kind, kind)]
        unit = largest[kind, tensor]
        assert deviation(got, torch.as_tensor(theirs, dtype=dtype), unit) <= tolerance, (kind, tensor)


def everything(run: FlatRun) -> dict[tuple[str, str], Tensor]:
    """(``params`` or a buffer, tensor) → what a run holds of it."""
    params = {("params", name): view for name, view in run.layout.views(run.params).items()}
    return params | {(kind, name): value for kind, of in run.state.items() for name, value in of.items()}


def size(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_all_that_the_reference_remembers_is_kept(optimizer: str, settings: Settings) -> None:
    row = ROW[optimizer]
    layout = layout_of(row.shapes)
    run = FlatRun(optimizer, settings, layout)
    _, reference = reference_run(row, settings, layout, gradients(layout, 1), row.variants[0])
    for name, state in reference.items():
        kept_of_it = [buffer for buffer, of in run.state.items() if name in of]
        ours = {row.state_names.get(kept, kept) for kept in [*kept_of_it, *run.optimizer.numbers]}
        assert {kept for kept, value in state.items() if value is not None} - row.unkept <= ours


# As many elements as fill torch's vectors: what is left over it computes with other roundings.
FUSED = [(row, settings) for row in ROWS if {"fused": True} in row.variants for settings in row.settings]


@pytest.mark.parametrize(("row", "settings"), FUSED, ids=lambda value: getattr(value, "name", None))
def test_the_bits_are_those_of_torchs_fused_kernel(row: Row, settings: Settings) -> None:
    layout = layout_of([(64, 64)])
    grads = gradients(layout, STEPS)
    run = FlatRun(row.name, settings, layout)
    for flat in grads:
        run.step(flat)
    params, reference = reference_run(row, settings, layout, grads, {"fused": True})
    assert torch.equal(run.params.view(64, 64), params["t0"])
    for name, of in run.state.items():
        assert torch.equal(of["t0"], reference["t0"][name]), name


def test_every_optimizer_of_the_catalogue_is_in_a_table() -> None:
    assert set(ROW) | set(TENSOR_WISE) == set(OPTIMIZERS)


@every_setting
def test_the_same_gradients_give_the_same_bits(optimizer: str, settings: Settings) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    runs = [FlatRun(optimizer, settings, layout) for _ in range(2)]
    start = runs[0].params.clone()
    norms = [[run.step(flat) for flat in gradients(layout, 5)] for run in runs]
    assert torch.equal(runs[0].params, runs[1].params)
    assert norms[0] == norms[1]
    assert not torch.equal(runs[0].params, start)


@every_setting
def test_a_run_goes_on_from_its_weights_state_and_numbers_alone(optimizer: str, settings: Settings) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    grads = gradients(layout, 25)
    run = FlatRun(optimizer, settings, layout)
    for flat in grads[:5]:
        run.step(flat)
    twin = run.twin()
    for flat in grads[5:]:
        assert run.step(flat) == twin.step(flat)
    assert torch.equal(run.params, twin.params)
    assert run.numbers == twin.numbers


@every_setting
@pytest.mark.parametrize("wire", [F32, BF16])
def test_gradients_are_left_as_they_came(optimizer: str, settings: Settings, wire: torch.dtype) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    grads = gradients(layout, 1)[0].to(wire)
    before = grads.clone()
    run = FlatRun(optimizer, settings, layout)
    run.step(grads)
    run.step(grads)
    assert torch.equal(grads, before)


@every_setting
def test_a_parameter_without_gradient_stays_finite(optimizer: str, settings: Settings) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    run = FlatRun(optimizer, settings, layout)
    for _ in range(3):
        run.step(torch.zeros(layout.numel))
    assert run.params.isfinite().all()


def test_centered_rmsprop_survives_a_variance_that_rounds_below_zero() -> None:
    grads = torch.linspace(0.1, 1, 1000)
    run = FlatRun("rmsprop", {"centered": True, "alpha": 0.5}, layout_of([(500,), (500,)]))
    negative = 0
    for _ in range(60):
        run.step(grads)
        negative += int((run.flat["square_avg"] - run.flat["grad_avg"] ** 2 < 0).sum())
    assert negative
    assert run.params.isfinite().all()


def alone(optimizer: Optimizer[Any], hyper: Hyperparameters, **lengths: int) -> FlatGroup:
    """Five weights at 1 and their state, all of one length but for ``lengths``."""
    zeros = {name: torch.zeros(lengths.get(name, 5)) for name in optimizer.state(hyper)}
    group = FlatGroup(torch.ones(5), torch.ones(lengths.get("grads", 5)), zeros, 1, numbers=dict(optimizer.numbers))
    if optimizer.advance is not None:
        group.numbers.update(optimizer.advance(hyper, 1, group.numbers))
    return group


@pytest.mark.parametrize(("name", "settings"), [(n, s) for n, s in SETTINGS if find(n).shapes is None])
def test_a_buffer_of_another_length_is_refused_before_a_weight_changes(name: str, settings: Settings) -> None:
    optimizer = find(name)
    hyper = optimizer.parse(settings, where="optimizer")
    for wrong in ("grads", *optimizer.state(hyper)):
        group = alone(optimizer, hyper, **{wrong: 4})
        with pytest.raises(ShapeMismatch) as refusal:
            optimizer.step_(group, hyper)
        assert refusal.value.evidence == {"tensor": wrong, "expected": [5], "got": [4]}
        assert torch.equal(group.params, torch.ones(5))


def test_a_missing_buffer_is_noticed_before_a_weight_changes() -> None:
    optimizer, params = find("adamw"), torch.ones(5)
    group = FlatGroup(params, torch.ones(5), {"exp_avg": torch.zeros(5)}, step=1)
    with pytest.raises(KeyError, match="exp_avg_sq"):
        update_(optimizer, group, optimizer.parse({}, where="optimizer"), Here())
    assert torch.equal(params, torch.ones(5))


def test_a_fresh_momentum_buffer_starts_as_the_gradient_whatever_it_held() -> None:
    params, buffer, grads = torch.zeros(3), torch.full((3,), math.nan), torch.tensor([1.0, 2.0, 3.0])
    sgd = find("sgd")
    hyper = sgd.parse({"lr": 0.1, "momentum": 0.5, "dampening": 0.5}, where="optimizer")
    group = FlatGroup(params, grads, {"momentum_buffer": buffer}, step=1, fresh=True)
    sgd.step_(group, hyper)
    assert torch.equal(buffer, grads)
    sgd.step_(group._replace(step=2, fresh=False), hyper)
    assert torch.equal(buffer, grads)
    assert torch.allclose(params, -0.2 * grads)


def test_an_accumulator_starts_at_the_value_asked_for_in_every_block() -> None:
    run = FlatRun("adagrad", {"initial_accumulator_value": 0.5}, layout_of([(7,)]), block=3)
    run.flat["sum"].fill_(math.nan)
    run.step(torch.ones(7))
    assert torch.equal(run.flat["sum"], torch.full((7,), 1.5))
    run.step(torch.ones(7))
    assert torch.equal(run.flat["sum"], torch.full((7,), 2.5))


def test_a_parameter_that_rprop_overshot_rests_for_one_update() -> None:
    run = FlatRun("rprop", {"lr": 0.1}, layout_of([(1,)]))
    run.params.zero_()
    seen = []
    for grad in (1.0, -1.0, -1.0, -1.0):
        run.step(torch.tensor([grad]))
        seen.append(run.params.item())
    assert seen == pytest.approx([-0.1, -0.1, -0.05, 0.01])
