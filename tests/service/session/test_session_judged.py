from __future__ import annotations

import math

import pytest
import torch

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.judge import judge
from optimd_service.session.judged import Judged
from optimd_service.types import Span


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
@pytest.mark.parametrize("width", [1000, BLOCK // 2 + 3, BLOCK, 5 * BLOCK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_has_the_bits_of_one_taken_of_all(length: int, width: int, dtype: torch.dtype) -> None:
    if width == 1000 and length > BLOCK:
        width = 100_003
    grads = torch.randn(length, generator=torch.Generator().manual_seed(length)).to(dtype)
    judged = Judged(grads)
    for start in range(0, length, width):
        judged.watch(Span(start, min(start + width, length)))
    assert judged.norm == judge(grads)


def test_it_sees_what_has_come_and_not_what_is_there_before() -> None:
    grads = torch.full((2 * BLOCK,), math.nan)
    judged = Judged(grads)
    for start in (0, BLOCK):
        grads[start : start + BLOCK] = 1.0
        judged.watch(Span(start, start + BLOCK))
    assert judged.norm == judge(torch.ones(2 * BLOCK))


def test_what_comes_out_of_order_or_not_at_all_is_left_to_be_judged_later() -> None:
    judged = Judged(torch.zeros(2 * BLOCK))
    judged.watch(Span(BLOCK, 2 * BLOCK))
    judged.watch(Span(0, BLOCK))
    assert judged.norm is None


def test_what_comes_behind_the_gradients_is_not_judged() -> None:
    grads = torch.ones(10)
    judged = Judged(grads)
    judged.watch(Span(0, 15))
    assert judged.norm == judge(grads)
