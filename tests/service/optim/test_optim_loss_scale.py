"""Dynamic loss scaling against torch.amp's."""

from __future__ import annotations

import math
import random

import pytest
import torch
from pydantic import ValidationError

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.loss_scale import LossScale, advance, begin, unscale_

INF = math.inf


def torch_unscaled(grads: torch.Tensor, scale: float) -> torch.Tensor:
    copy, inverse = grads.clone(), torch.tensor(scale, dtype=torch.float64).reciprocal().float()
    torch._amp_foreach_non_finite_check_and_unscale_([copy], torch.zeros(()), inverse)
    return copy


@pytest.mark.parametrize(
    "spec",
    [
        LossScale(growth_interval=3),
        LossScale(init_scale=1000.0, growth_factor=1.7, backoff_factor=0.3, growth_interval=1),
        LossScale(init_scale=0.1, growth_factor=3.3, backoff_factor=0.9, growth_interval=5),
    ],
)
def test_the_scale_moves_as_gradscalers(spec: LossScale) -> None:
    numbers, finite = begin(spec), random.Random(0)  # noqa: S311  a sequence of steps, not a secret
    scale = torch.full((), spec.init_scale)
    tracker = torch.zeros((), dtype=torch.int32)
    for _ in range(400):
        assert numbers == {"scale": scale.item(), "growth_tracker": tracker.item()}
        good = finite.random() < 0.8
        found = torch.tensor(float(not good))
        torch._amp_update_scale_(scale, tracker, found, spec.growth_factor, spec.backoff_factor, spec.growth_interval)
        numbers = advance(spec, numbers, good)


def test_a_whole_run_is_gradscalers() -> None:
    spec = LossScale(init_scale=2.0**10, growth_interval=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=spec.init_scale, growth_interval=spec.growth_interval)
    weight = torch.nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([weight], lr=0.1)
    numbers, mine = begin(spec), torch.ones(3)
    for slope in (1.0, INF, 2.0, 0.5, 3.0, -INF, 1.0, 1.0, 1.0):
        sgd.zero_grad()
        scaler.scale((weight * slope).sum()).backward()
        scaler.step(sgd)
        scaler.update()
        grads = torch.full((3,), slope) * numbers["scale"]
        unscale_(grads, numbers["scale"])
        finite = bool(grads.isfinite().all())
        if finite:
            mine -= 0.1 * grads
        numbers = advance(spec, numbers, finite)
        assert numbers["scale"] == scaler.get_scale()
        assert torch.equal(mine, weight.data)


def test_defaults_are_gradscalers() -> None:
    scaler, spec = torch.amp.GradScaler("cpu"), LossScale()
    assert begin(spec) == {"scale": scaler.get_scale(), "growth_tracker": 0}
    assert (spec.growth_factor, spec.backoff_factor, spec.growth_interval) == (
        scaler.get_growth_factor(),
        scaler.get_backoff_factor(),
        scaler.get_growth_interval(),
    )


def test_the_scale_stays_a_positive_number_however_long_a_run_goes_wrong_or_right() -> None:
    spec = LossScale(growth_interval=1)
    for finite in (False, True):
        numbers = begin(spec)
        for _ in range(1000):
            numbers = advance(spec, numbers, finite)
        assert 0 < numbers["scale"] < INF
        assert 0 < 1 / numbers["scale"] < INF
        numbers = advance(spec, numbers, not finite)
        assert numbers["scale"] > 1e38 / 2 if finite else numbers["scale"] < 1e-37


def test_numbers_are_not_changed_in_place() -> None:
    spec = LossScale(growth_interval=1)
    numbers = begin(spec)
    assert advance(spec, numbers, True) == {"scale": 2.0**17, "growth_tracker": 0}
    assert numbers == {"scale": 2.0**16, "growth_tracker": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 2.0**16, 1000.0, 0.3])
@pytest.mark.parametrize("length", [0, 1, 1003, BLOCK + 9])
def test_unscaling_is_torchs(length: int, scale: float, dtype: torch.dtype) -> None:
    grads = torch.randn(length, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = torch_unscaled(grads, scale)
    unscale_(grads, scale)
    torch.testing.assert_close(grads, wanted, rtol=6e-8 if dtype is torch.float64 else 0, atol=0)


def test_elements_that_are_not_finite_stay_so() -> None:
    grads = torch.tensor([INF, -INF, math.nan, 2.0])
    unscale_(grads, 2.0**16)
    assert grads.isfinite().tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_scale", 0.0),
        ("init_scale", INF),
        ("init_scale", "1"),
        ("growth_factor", 1.0),
        ("backoff_factor", 0.0),
        ("backoff_factor", 1.0),
        ("growth_interval", 0),
        ("growth_interval", 1.5),
        ("scale", 1.0),
    ],
)
def test_a_scale_that_cannot_work_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        LossScale.model_validate({field: value})
    assert [finding["loc"] for finding in refused.value.errors()] == [(field,)]
