from __future__ import annotations

import math
from itertools import pairwise

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


@pytest.mark.parametrize("cuts", [[5], [BLOCK], [BLOCK - 3, BLOCK + 5], [7, 8, 2 * BLOCK, 2 * BLOCK + 100]], ids=str)
def test_parts_in_any_order_have_the_bits_of_the_whole(cuts: list[int]) -> None:
    grads = torch.randn(3 * BLOCK + 7, generator=torch.Generator().manual_seed(0))
    parts = [Span(start, stop) for start, stop in pairwise([0, *cuts, len(grads)])]
    for order in (parts[::-1], parts[1:] + parts[:1]):
        judged = Judged(grads)
        for part in order:
            assert judged.norm is None
            judged.watch(part)
        assert judged.norm == judge(grads)


def test_what_is_written_anew_is_judged_anew() -> None:
    grads = torch.full((2 * BLOCK,), math.inf)
    judged = Judged(grads)
    judged.watch(Span(0, 2 * BLOCK))
    assert judged.norm == math.inf
    again = Span(BLOCK // 2, 2 * BLOCK)
    judged.expect(again)
    assert judged.norm is None
    grads[:] = 1.0
    judged.watch(again)
    assert judged.norm is not None
    judged.expect(Span(0, BLOCK // 2))
    judged.watch(Span(0, BLOCK // 2))
    assert judged.norm == judge(torch.ones(2 * BLOCK))


def test_what_has_come_in_part_is_not_judged() -> None:
    judged = Judged(torch.zeros(2 * BLOCK))
    judged.watch(Span(0, 2 * BLOCK))
    judged.expect(Span(3, 9))
    judged.watch(Span(3, 8))
    assert judged.norm is None


def test_what_comes_behind_the_gradients_is_not_judged() -> None:
    grads = torch.ones(10)
    judged = Judged(grads)
    judged.watch(Span(0, 15))
    assert judged.norm == judge(grads)
