"""Gradient accumulation: the sum and the mean of several pushes' gradients."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.accumulation import Accumulate, accumulate_
from optimd_service.optim.blocks import BLOCK

PAIRS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.bfloat16),
]


def pushes(steps: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator).to(dtype) for _ in range(steps)]


def accumulated(spec: Accumulate, grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    total = torch.full_like(grads[0], math.nan, dtype=dtype)
    for push, g in enumerate(grads, start=1):
        accumulate_(total, g, push == 1, spec.divisor(push))
    return total


@pytest.mark.parametrize(("dtype", "wire"), PAIRS)
@pytest.mark.parametrize("length", [0, 1, 1003, BLOCK + 7])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pushes_add_up_as_torch_adds_them(
    steps: int, mean: bool, length: int, dtype: torch.dtype, wire: torch.dtype
) -> None:
    grads = pushes(steps, length, wire)
    wanted = grads[0].to(dtype)
    for g in grads[1:]:
        wanted = wanted + g.to(dtype)
    wanted = wanted / steps if mean else wanted
    got = accumulated(Accumulate(steps=steps, mean=mean), grads, dtype)
    assert torch.equal(got, wanted)


def test_bfloat16_gradients_are_added_in_float32() -> None:
    grads = [torch.full((3,), 1.0, dtype=torch.bfloat16), *[torch.full((3,), 2.0**-9, dtype=torch.bfloat16)] * 4]
    assert accumulated(Accumulate(steps=5, mean=False), grads, torch.float32).tolist() == [1 + 2.0**-7] * 3


def test_the_mean_is_what_one_batch_would_have_given() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(12, 5, generator=generator), torch.randn(12, 1, generator=generator)
    layer = torch.nn.Linear(5, 1, bias=False)

    def gradient(rows: slice) -> Tensor:
        loss = torch.nn.functional.mse_loss(layer(inputs[rows]), targets[rows])
        return torch.autograd.grad(loss, layer.weight)[0].flatten()

    parts = [gradient(slice(at, at + 4)) for at in (0, 4, 8)]
    got = accumulated(Accumulate(steps=3), parts, torch.float32)
    torch.testing.assert_close(got, gradient(slice(None)))


def test_the_gradients_are_only_read() -> None:
    grads = pushes(2, 100, torch.float32)
    before = [g.clone() for g in grads]
    accumulated(Accumulate(steps=2), grads, torch.float32)
    assert all(map(torch.equal, grads, before))


def test_sums_are_the_same_whoever_adds() -> None:
    total, grads = pushes(2, 2 * BLOCK + 5, torch.float32)
    alone, several = total.clone(), total.clone()
    accumulate_(alone, grads, False, 3)
    with ThreadPoolExecutor(3) as threads:
        accumulate_(several, grads, False, 3, threads.map)
    assert torch.equal(alone, several)
    assert torch.equal(alone, (total + grads) / 3)


def test_gradients_of_another_length_are_refused_before_anything_is_written() -> None:
    total = torch.zeros(3)
    for first in (True, False):
        with pytest.raises(ShapeMismatch):
            accumulate_(total, torch.ones(4), first)
    assert total.tolist() == [0, 0, 0]


def test_only_the_last_push_divides() -> None:
    assert [Accumulate(steps=3).divisor(push) for push in (1, 2, 3)] == [1, 1, 3]
    assert [Accumulate(steps=3, mean=False).divisor(push) for push in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "fields", [{}, {"steps": 0}, {"steps": 1.5}, {"steps": True}, {"steps": 2, "mean": 1}, {"k": 2}]
)
def test_an_accumulation_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Accumulate.model_validate(fields)
