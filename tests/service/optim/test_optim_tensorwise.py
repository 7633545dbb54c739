"""Optimizers that look at tensors one by one, held against torch.optim, pytorch_optimizer, and papers read again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from optim_tensor_references import (
    REFERENCES,
    SETTINGS,
    Settings,
    TensorRun,
    deviation,
    gradients,
    reference_run,
    shapes_for,
)

from optimd_service.optim.catalogue import OPTIMIZERS, describe

# Relative, after 50 steps. Adafactor and Muon are computed by the very code they are held against, bit for bit; SOAP
# but for the order in which products of matrices are added up, since our buffers are laid out row by row.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
# The second moments of a vector have rank 1 at first, and any basis of what is left serves; a last bit decides which.
TOLERANCE_OF_TURNED_VECTORS = 1e-3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and far slower beside other test processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS, ids=str)
def test_fifty_steps_end_where_the_reference_ends(optimizer: str, settings: Settings, dtype: torch.dtype) -> None:
    run, steps = TensorRun(optimizer, settings, dtype), gradients(shapes_for(optimizer), dtype)
    for grads in steps:
        run.step(grads)
    wanted, _ = reference_run(optimizer, settings, steps, dtype)
    loose = dtype is torch.float32 and "precondition_1d" in settings
    assert deviation(run, wanted) < (TOLERANCE_OF_TURNED_VECTORS if loose else TOLERANCE[dtype])


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS, ids=str)
def test_bfloat16_gradients_step_as_the_float32_they_stand_for(optimizer: str, settings: Settings) -> None:
    narrow, wide = TensorRun(optimizer, settings), TensorRun(optimizer, settings)
    for grads in gradients(shapes_for(optimizer), steps=5):
        narrow.step([g.bfloat16() for g in grads])
        wide.step([g.bfloat16().float() for g in grads])
    assert all(torch.equal(a, b) for a, b in zip(narrow.params, wide.params, strict=True))


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS, ids=str)
def test_a_twin_given_weights_and_state_goes_on_with_the_same_bits(optimizer: str, settings: Settings) -> None:
    run, steps = TensorRun(optimizer, settings), gradients(shapes_for(optimizer), steps=10)
    for grads in steps[:5]:
        run.step(grads)
    twin = TensorRun(optimizer, settings)
    twin.params = [p.clone() for p in run.params]
    twin.state = [{name: buffer.clone() for name, buffer in state.items()} for state in run.state]
    twin.steps = run.steps
    for grads in steps[5:]:
        assert run.step(grads) == twin.step(grads)
    assert all(torch.equal(a, b) for a, b in zip(run.params, twin.params, strict=True))


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS, ids=str)
def test_the_gradients_are_left_as_they_came(optimizer: str, settings: Settings) -> None:
    run, steps = TensorRun(optimizer, settings), gradients(shapes_for(optimizer), steps=2)
    kept = [g.clone() for g in steps[1]]
    for grads in steps:
        run.step(grads)
    assert all(torch.equal(g, k) for g, k in zip(steps[1], kept, strict=True))


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_norms_are_those_of_the_change_and_of_the_new_weights(optimizer: str) -> None:
    run, steps = TensorRun(optimizer, {}), gradients(shapes_for(optimizer), steps=2)
    run.step(steps[0])
    old = torch.cat([p.flatten() for p in run.params]).double()
    norms = run.step(steps[1])
    new = torch.cat([p.flatten() for p in run.params]).double()
    assert norms.param == pytest.approx(new.norm().item(), rel=1e-12)
    assert norms.update == pytest.approx((new - old).norm().item(), rel=1e-6)  # the change itself is rounded


@pytest.mark.parametrize("optimizer", REFERENCES)
def test_a_tensors_shapes_name_buffers_of_the_row(optimizer: str) -> None:
    run = TensorRun(optimizer, {})
    assert {name for state in run.state for name in state} <= set(run.optimizer.state(run.hyper))


@pytest.mark.parametrize(
    ("optimizer", "settings"), [s for s in SETTINGS if s[0] in {"adafactor", "muon", "sparse_adam"}], ids=str
)
def test_state_is_torchs_by_name_shape_and_value(optimizer: str, settings: Settings) -> None:
    run, steps = TensorRun(optimizer, settings), gradients(shapes_for(optimizer), steps=5)
    for grads in steps:
        run.step(grads)
    params, reference = reference_run(optimizer, settings, steps, torch.float32)
    states = [state for state, p in zip(run.state, run.params, strict=True) if p.numel()]
    for p, state in zip(params, states, strict=True):
        kept = {name: value for name, value in reference.state[p].items() if name != "step"}
        assert state.keys() == kept.keys()
        for name, buffer in state.items():
            # A mean in which gradients cancel keeps the rounding of what they were.
            torch.testing.assert_close(buffer, kept[name], rtol=1e-6, atol=1e-7 * kept[name].abs().max().item())


def test_bytes_per_parameter_are_those_of_the_shapes_and_not_of_the_names() -> None:
    sizes = {name: describe(OPTIMIZERS[name])["bytes_per_parameter"] for name in REFERENCES}
    assert sizes == {
        "lamb": 8,
        "lars": 4,
        "adafactor": 8 / 1024,
        "muon": 4,
        "soap": 24,
        "shampoo": 20,
        "sparse_adam": 8,
    }


@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_all_but_zero_gradients_leave_weights_finite(optimizer: str) -> None:
    run = TensorRun(optimizer, {"lr": 100.0, "weight_decay": 0.0})
    grads = [torch.zeros(shape) for shape in run.shapes]
    for g in grads:
        g.view(-1)[:1] = 2e-44
    for _ in range(2):
        run.step(grads)
    assert all(p.isfinite().all() for p in run.params)


@pytest.mark.parametrize("optimizer", ["lamb", "lars"])
def test_a_tensor_of_zeros_begins_to_move_at_the_global_rate(optimizer: str) -> None:
    run = TensorRun(optimizer, {"lr": 0.5})
    for p in run.params:
        p.zero_()
    run.step([torch.ones(shape) for shape in run.shapes])
    assert all(torch.allclose(p, torch.full_like(p, -0.5), rtol=1e-5) for p in run.params)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e2, 1e4, 1e10])
def test_shampoo_survives_second_moments_whose_smallest_rounds_to_nothing(size: float) -> None:
    """As of units that are off, whose gradients are 0: beside 1e4 of others, float32 knows no ε of 1e-6."""
    run, generator = TensorRun("shampoo", {}), torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = [torch.randn(shape, generator=generator) for shape in run.shapes]
        run.step([size * grad * (torch.rand(grad.shape, generator=generator) < 0.3) for grad in drawn])
    assert all(p.isfinite().all() for p in run.params)
