"""Averages of the weights against torch.optim.swa_utils."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from optim_references import SHAPES, deviation, layout_of
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.averages import Ema, Swa, ema_, swa_
from optimd_service.optim.blocks import BLOCK

DTYPES = [torch.float32, torch.float64]


class Model(torch.nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        views = layout_of(SHAPES).views(weights)
        self.tensors = torch.nn.ParameterList(torch.nn.Parameter(view) for view in views.values())


def walk(dtype: torch.dtype, steps: int = 40) -> Iterator[Tensor]:
    """One flat buffer of weights, moved a little from step to step."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(layout_of(SHAPES).numel, generator=generator, dtype=dtype)
    for _ in range(steps):
        yield weights
        weights = weights + 0.1 * torch.randn(len(weights), generator=generator, dtype=dtype)


def torch_average(dtype: torch.dtype, multi_avg_fn: Callable[..., None] | None) -> Tensor:
    averaged: AveragedModel | None = None
    for weights in walk(dtype):
        model = Model(weights)
        averaged = averaged or AveragedModel(model, multi_avg_fn=multi_avg_fn)
        averaged.update_parameters(model)
    assert averaged is not None
    return torch.cat([param.detach().flatten() for param in averaged.parameters()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_the_moving_average_is_torchs(decay: float, dtype: torch.dtype) -> None:
    average = torch.full((layout_of(SHAPES).numel,), math.nan, dtype=dtype)
    for updates, weights in enumerate(walk(dtype)):
        ema_(average, weights, Ema(decay=decay), updates)
    wanted = torch_average(dtype, get_ema_multi_avg_fn(decay))
    assert deviation(average, wanted) <= (1e-7 if dtype is torch.float32 else 1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_equal_average_is_torchs_and_the_mean(dtype: torch.dtype) -> None:
    average = torch.full((layout_of(SHAPES).numel,), math.nan, dtype=dtype)
    for n_averaged, weights in enumerate(walk(dtype)):
        swa_(average, weights, n_averaged)
    # torch has 1/(n+1) in float32, whatever the weights are.
    assert deviation(average, torch_average(dtype, None)) <= 2e-7
    mean = torch.stack([weights.double() for weights in walk(dtype)]).mean(0)
    assert deviation(average.double(), mean) <= (1e-6 if dtype is torch.float32 else 1e-15)


def test_a_warming_average_forgets_its_start_sooner() -> None:
    wanted, average = 0.0, torch.zeros(1, dtype=torch.float64)
    for updates in range(200):
        weight = math.sin(updates)
        decay = min(0.9, (1 + updates) / (10 + updates)) if updates else 0.0
        wanted = decay * wanted + (1 - decay) * weight
        ema_(average, torch.tensor([weight], dtype=torch.float64), Ema(decay=0.9, warmup=True), updates)
        assert average.item() == pytest.approx(wanted, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.7, 0.9999])
def test_an_average_of_equal_weights_is_those_weights(decay: float) -> None:
    weights = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    average = weights.clone()
    for updates in range(20):
        ema_(average, weights, Ema(decay=decay), updates)
        swa_(average, weights, updates)
    assert torch.equal(average, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.1, 0.999])
def test_threads_give_the_bits_of_one(decay: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    first, weights = torch.randn(2, 2 * BLOCK + 5, generator=generator, dtype=dtype)
    alone, several = first.clone(), first.clone()
    with ThreadPoolExecutor(3) as threads:
        ema_(several, weights, Ema(decay=decay), 1, threads.map)
    ema_(alone, weights, Ema(decay=decay), 1)
    assert torch.equal(alone, several)
    torch.testing.assert_close(alone, decay * first + (1 - decay) * weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_averages_of_next_to_nothing(length: int) -> None:
    average, weights = torch.zeros(length), torch.ones(length)
    for updates in range(3):
        ema_(average, weights, Ema(), updates)
        swa_(average, weights, updates)
    assert average.tolist() == [1.0] * length


def test_lengths_that_differ_are_refused_before_anything_is_written() -> None:
    average = torch.zeros(3)
    with pytest.raises(ShapeMismatch):
        ema_(average, torch.ones(4), Ema(), 0)
    with pytest.raises(ShapeMismatch):
        swa_(average, torch.ones(4), 1)
    assert average.tolist() == [0, 0, 0]


def test_steps_that_are_averaged() -> None:
    steps = range(1, 13)
    assert [step for step in steps if Ema().due(step)] == list(steps)
    assert [step for step in steps if Ema(every=5).due(step)] == [5, 10]
    assert [step for step in steps if Swa().due(step)] == list(steps)
    assert [step for step in steps if Swa(start=4, every=3).due(step)] == [4, 7, 10]


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (Ema, "decay", 1.0),
        (Ema, "decay", -0.1),
        (Ema, "decay", math.nan),
        (Ema, "decay", "0.9"),
        (Ema, "warmup", 1),
        (Ema, "every", 0),
        (Ema, "start", 3),
        (Swa, "start", -1),
        (Swa, "start", 1.5),
        (Swa, "every", 0),
        (Swa, "decay", 0.9),
    ],
)
def test_an_average_that_cannot_be_taken_is_refused(model: type[BaseModel], field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate({field: value})
    assert [finding["loc"] for finding in refused.value.errors()] == [(field,)]
