"""Whether gradients are finite, and how long they are."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from optim_references import SHAPES, gradients, layout_of

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.judge import judge, nonfinite_tensors, zero_nonfinite_

NAN, INF = math.nan, math.inf

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def test_the_norm_is_torchs_total_norm() -> None:
    layout = layout_of(SHAPES)
    grads = gradients(layout, 1)[0]
    assert judge(grads) == pytest.approx(torch.nn.utils.get_total_norm(layout.views(grads).values()).item(), rel=1e-6)


@every_dtype
def test_a_long_norm_is_as_exact_as_a_short_one(dtype: torch.dtype) -> None:
    grads = torch.randn(3 * BLOCK + 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert judge(grads) == pytest.approx(grads.double().norm().item(), rel=1e-11)


@every_dtype
def test_the_number_of_workers_changes_no_bit_of_a_norm(dtype: torch.dtype) -> None:
    grads = torch.randn(2 * BLOCK + 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with ThreadPoolExecutor(3) as threads:
        assert judge(grads, threads.map) == judge(grads)


@every_dtype
@pytest.mark.parametrize(
    ("elements", "norm"),
    [
        ([], 0.0),
        ([0.0, -0.0], 0.0),
        ([3.0, -4.0], 5.0),
        ([3e30, -4e30], 5e30),
        ([3e-30, 4e-30], 5e-30),
        ([3e38, -3e38], 3e38 * math.sqrt(2)),
    ],
)
def test_finite_elements_have_a_finite_norm(elements: list[float], norm: float, dtype: torch.dtype) -> None:
    rounding = 1e-2 if dtype is torch.bfloat16 else 1e-6  # of the elements, on the way into their dtype
    assert judge(torch.tensor(elements, dtype=dtype)) == pytest.approx(norm, rel=rounding)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e300, 5e-324])
def test_float64_elements_whose_squares_leave_the_range_have_norms_like_any_other(size: float) -> None:
    assert judge(torch.full((4,), size, dtype=torch.float64)) == pytest.approx(2 * size, rel=1e-12)


@every_dtype
@pytest.mark.parametrize("elements", [[NAN], [INF], [-INF], [1.0, NAN], [INF, NAN], [NAN, INF], [1e30, -INF]])
@pytest.mark.parametrize("ahead", [0, BLOCK])
def test_one_element_that_is_not_finite_is_enough(elements: list[float], ahead: int, dtype: torch.dtype) -> None:
    assert not math.isfinite(judge(torch.cat([torch.ones(ahead), torch.tensor(elements)]).to(dtype)))


def test_only_the_first_ten_damaged_tensors_are_named() -> None:
    layout = layout_of([(2,)] * 40)
    grads = torch.ones(80)
    assert nonfinite_tensors(grads, layout) == []
    grads[5], grads[70] = NAN, INF
    assert nonfinite_tensors(grads, layout) == [list(layout.spans)[2], list(layout.spans)[35]]
    grads[:] = INF
    assert nonfinite_tensors(grads, layout) == list(layout.spans)[:10]


def test_huge_but_finite_tensors_are_not_named() -> None:
    assert nonfinite_tensors(torch.full((4,), 1e30), layout_of([(2,), (2,)])) == []


@every_dtype
def test_zeroing_touches_only_what_is_not_finite(dtype: torch.dtype) -> None:
    grads = torch.tensor([1.0, NAN, INF, -INF, -3e38], dtype=dtype)
    zero_nonfinite_(grads)
    assert torch.equal(grads, torch.tensor([1.0, 0.0, 0.0, 0.0, -3e38], dtype=dtype))
