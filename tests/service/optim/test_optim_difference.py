"""Differences in bfloat16: both sides come to the same bits, and errors do not add up."""

from __future__ import annotations

import math

import pytest
import torch

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.difference import difference_

INF, NAN = math.inf, math.nan
LARGEST = torch.finfo(torch.float32).max


def sent_for(held: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, bool]:
    sent = torch.empty(held.shape, dtype=torch.bfloat16)
    return sent, difference_(sent, held, params)


def test_the_difference_is_rounded_once_and_added_as_its_receiver_adds_it() -> None:
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(10_001, generator=generator)
    held = params + torch.randn(10_001, generator=generator) * torch.logspace(-12, 2, 10_001)
    before = held.clone()
    sent, finite = sent_for(held, params)
    assert finite
    assert torch.equal(sent, (params - before).bfloat16())
    assert torch.equal(held, before + sent.float())


def test_what_is_held_stays_within_one_rounding_of_the_last_way_however_long_it_goes() -> None:
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(1000, generator=generator)
    held = params.clone()
    for _ in range(500):
        params += torch.randn(1000, generator=generator) * 1e-3
        way = (params - held).abs()
        sent_for(held, params)
        assert ((params - held).abs() <= way * 2**-8 + params.abs() * 2**-23).all()


@pytest.mark.parametrize(
    ("held", "param", "then"),
    [(0.0, INF, INF), (1.0, -INF, -INF), (0.0, NAN, NAN), (INF, 1.0, INF), (NAN, 1.0, NAN)],
)
def test_from_what_is_not_finite_no_difference_leads_on(held: float, param: float, then: float) -> None:
    flat = torch.tensor([1.0, held])
    _, finite = sent_for(flat, torch.tensor([1.0, param]))
    assert not finite
    torch.testing.assert_close(flat, torch.tensor([1.0, then]), equal_nan=True)


@pytest.mark.parametrize(("held", "param"), [(3e38, -3e38), (-LARGEST, LARGEST), (0.0, LARGEST), (0.0, -3.4e38)])
def test_between_finite_numbers_the_difference_is_finite(held: float, param: float) -> None:
    flat = torch.tensor([held])
    sent, finite = sent_for(flat, torch.tensor([param]))
    assert finite
    assert sent.isfinite().all()
    assert abs(flat.item() - param) < abs(held - param)


def test_lengths_that_differ_are_refused_before_anything_is_written() -> None:
    sent, held = torch.full((3,), 7.0, dtype=torch.bfloat16), torch.zeros(3)
    for wrong in (torch.ones(2), torch.ones(4)):
        with pytest.raises(ShapeMismatch):
            difference_(sent, held, wrong)
    with pytest.raises(ShapeMismatch):
        difference_(sent[:2], held, torch.ones(3))
    assert sent.tolist() == [7.0] * 3
    assert held.tolist() == [0.0] * 3
