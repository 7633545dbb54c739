"""Clipping: torch.nn.utils' two rules, norms of each tensor alone, and adaptive clipping by rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from optim_references import SHAPES, deviation, gradients, layout_of
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import Parameter

from optimd_service.optim import clipping, units
from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.clipping import Clip, clip_
from optimd_service.optim.pnorm import p_norm
from optimd_service.types import Layout, TensorSpec

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
RULES: list[dict[str, Any]] = [
    {"max_norm": 0.5},
    {"max_norm": 0.1, "norm_type": 3},
    {"max_norm": 0.1, "norm_type": "inf"},
    {"max_norm": 0.1, "per": "tensor"},
    {"clip_value": 0.01},
    {"agc": 0.01, "eps": 1e-3},
]
clip_of: Callable[[Any], Any] = TypeAdapter(Clip).validate_python


def weights_of(layout: Layout) -> Tensor:
    return torch.linspace(-1, 1, layout.numel, dtype=layout.dtype)


def begun(dtype: torch.dtype) -> tuple[Layout, Tensor]:
    layout = layout_of(SHAPES, torch.float64 if dtype is torch.float64 else torch.float32)
    return layout, gradients(layout, 1)[0].to(dtype)


def clipped(grads: Tensor, layout: Layout, rule: dict[str, Any], each: Any = map) -> tuple[Tensor, float]:
    """A clipped copy, and the clip_scale."""
    copy = grads.clone()
    scale = clip_(copy, weights_of(layout), layout, clip_of(rule), p_norm(grads, 2), each)
    return copy, scale


def parameters(grads: Tensor, layout: Layout) -> list[Parameter]:
    """A separate parameter with its gradient for each tensor that has elements: torch knows no largest of none."""
    found = []
    for view in filter(torch.numel, layout.views(grads.clone()).values()):
        found.append(Parameter(torch.zeros_like(view)))
        found[-1].grad = view
    return found


def joined(params: Iterable[Parameter]) -> Tensor:
    return torch.cat([param.grad.flatten() for param in params if param.grad is not None])


def by_rows(grads: Tensor, layout: Layout, agc: float, eps: float) -> Tensor:
    """Adaptive clipping as the paper writes it, in float64, tensor by tensor."""
    rows = []
    weights = layout.views(weights_of(layout).double())
    for name, g in layout.views(grads.double()).items():
        over = tuple(range(1, g.ndim)) if g.ndim >= 2 else tuple(range(g.ndim))
        lengths = [x.square().sum(over, keepdim=True).sqrt() if x.ndim else x.abs() for x in (weights[name], g)]
        allowed = agc * lengths[0].clamp(min=eps)
        rows.append(torch.where(lengths[1] > allowed, g * allowed / lengths[1], g).flatten())
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm_type", [1, 1.5, 2, 2.0, 3, "inf"])
@pytest.mark.parametrize("max_norm", [1e-3, 0.1, 1.0, 1e9])
def test_the_norm_of_everything_is_clipped_as_torch_clips_it(
    max_norm: float, norm_type: float | str, dtype: torch.dtype
) -> None:
    layout, grads = begun(dtype)
    params = parameters(grads, layout)
    norm = torch.nn.utils.clip_grad_norm_(params, max_norm, float(norm_type)).item()
    got, scale = clipped(grads, layout, {"max_norm": max_norm, "norm_type": norm_type})
    assert deviation(got, joined(params)) <= (3e-7 if dtype is torch.float32 else 1e-14)
    assert scale == pytest.approx(min(1, max_norm / (norm + 1e-6)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm_type", [2, "inf"])
def test_each_tensors_norm_is_clipped_as_if_it_were_alone(norm_type: float | str, dtype: torch.dtype) -> None:
    layout, grads = begun(dtype)
    params = parameters(grads, layout)
    norms = [torch.nn.utils.clip_grad_norm_([param], 0.1, float(norm_type)).item() for param in params]
    got, scale = clipped(grads, layout, {"max_norm": 0.1, "norm_type": norm_type, "per": "tensor"})
    assert deviation(got, joined(params)) <= (3e-7 if dtype is torch.float32 else 1e-14)
    assert min(norms) < 0.1 < max(norms)
    assert scale == pytest.approx(0.1 / (max(norms) + 1e-6), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_value", [1e-4, 0.01, 0.3, 1e9])
def test_values_are_clipped_as_torch_clips_them(clip_value: float, dtype: torch.dtype) -> None:
    layout, grads = begun(dtype)
    params = parameters(grads, layout)
    torch.nn.utils.clip_grad_value_(params, clip_value)
    got, scale = clipped(grads, layout, {"clip_value": clip_value})
    assert torch.equal(got, joined(params))
    assert scale == pytest.approx(min(1, clip_value / grads.abs().max().item()), rel=1e-2)
    assert (scale < 1) == (not torch.equal(got, grads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("agc", [1e-3, 0.01, 1e6])
def test_adaptive_clipping_shortens_rows_beside_their_weights(agc: float, dtype: torch.dtype) -> None:
    layout, grads = begun(dtype)
    wanted = by_rows(grads, layout, agc, 1e-3)
    got, scale = clipped(grads, layout, {"agc": agc})
    assert deviation(got.double(), wanted.to(dtype).double()) <= {torch.float32: 1e-7, torch.float64: 1e-14}.get(
        dtype, 4e-3
    )
    factors = (wanted / grads.double())[grads != 0]
    assert scale == pytest.approx(factors.min().item(), rel=1e-6)


def test_adaptive_clipping_lets_a_row_leave_zero() -> None:
    layout, grads = layout_of([(2, 2)]), torch.ones(4)
    scale = clip_(grads, torch.zeros(4), layout, clip_of({"agc": 0.5, "eps": 0.01}), 2.0)
    assert grads.view(2, 2).norm(dim=1) == pytest.approx([0.005, 0.005])
    assert scale == pytest.approx(0.005 / math.sqrt(2))


def test_bfloat16_gradients_are_scaled_in_float32_and_rounded_once() -> None:
    layout, grads = begun(torch.bfloat16)
    norm = grads.double().norm().item()
    got, scale = clipped(grads, layout, {"max_norm": 0.5})
    assert scale == pytest.approx(0.5 / (norm + 1e-6), rel=1e-9)
    assert torch.equal(got, (grads.float() * scale).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_small_gradients_are_not_written(rule: dict[str, Any], dtype: torch.dtype) -> None:
    layout = layout_of(SHAPES)
    grads = torch.full((layout.numel,), 1e-9, dtype=dtype)
    before, version = grads.clone(), grads._version
    norm = p_norm(grads, 2)
    assert clip_(grads, weights_of(layout), layout, clip_of(rule), norm) == 1.0
    assert grads._version == version
    assert torch.equal(grads, before)


@pytest.mark.parametrize("rule", RULES)
def test_what_follows_the_gradients_in_the_layout_has_no_say(rule: dict[str, Any]) -> None:
    layout, grads = begun(torch.float32)
    behind = (TensorSpec("mean", (5, 7), role="buffer"), TensorSpec("head", (3,), role="frozen"))
    longer = Layout((*layout.tensors, *behind), layout.dtype)
    short, scale = clipped(grads, layout, rule)
    copy = grads.clone()
    params = torch.cat([weights_of(layout), torch.full((38,), math.nan)])
    assert clip_(copy, params, longer, clip_of(rule), p_norm(grads, 2)) == scale
    assert torch.equal(copy, short)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_threads_give_the_same_bits(rule: dict[str, Any], dtype: torch.dtype) -> None:
    layout = layout_of([(3, BLOCK // 2 + 1), (5,), (BLOCK + 3,), (700, 30), (), (4, 4)])
    grads = torch.randn(layout.numel, generator=torch.Generator().manual_seed(2)).to(dtype)
    with ThreadPoolExecutor(3) as threads:
        several, scale = clipped(grads, layout, rule, threads.map)
    alone, scale_alone = clipped(grads, layout, rule)
    assert scale == scale_alone < 1
    assert torch.equal(several, alone)


def test_rows_are_clipped_alike_however_they_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, grads = begun(torch.float32)
    whole = clipped(grads, layout, {"agc": 0.01})
    tensors = clipped(grads, layout, {"max_norm": 0.1, "per": "tensor"})
    monkeypatch.setattr(units, "BLOCK", 64)
    monkeypatch.setattr(clipping, "BLOCK", 64)
    for (got, scale), (wanted, wanted_scale) in (
        (clipped(grads, layout, {"agc": 0.01}), whole),
        (clipped(grads, layout, {"max_norm": 0.1, "per": "tensor"}), tensors),
    ):
        assert torch.equal(got, wanted)
        assert scale == wanted_scale


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shapes", [[], [(0,)], [(0, 3), (3, 0)]])
def test_no_elements_are_not_clipped(shapes: list[tuple[int, ...]], rule: dict[str, Any]) -> None:
    assert clip_(torch.empty(0), torch.empty(0), layout_of(shapes), clip_of(rule), 0.0) == 1.0


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 40, math.inf])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e38), (torch.float32, 1e-40), (torch.float64, 1e300)])
def test_no_power_leaves_the_range(p: float, dtype: torch.dtype, size: float) -> None:
    flat = torch.tensor([3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    assert p_norm((flat * size).to(dtype), p) == pytest.approx(flat.norm(p).item() * size, rel=1e-5)


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_p_norm_is_that_of_its_parts(dtype: torch.dtype, p: float) -> None:
    flat = torch.randn(BLOCK + 70_001, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert p_norm(flat, p) == pytest.approx(flat.double().norm(p).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "filled_in"),
    [
        ({"max_norm": 1}, {"max_norm": 1.0, "norm_type": 2.0, "per": "all"}),
        ({"max_norm": 1.0, "norm_type": "inf"}, {"max_norm": 1.0, "norm_type": "inf", "per": "all"}),
        ({"max_norm": 1.0, "per": "tensor"}, {"max_norm": 1.0, "norm_type": 2.0, "per": "tensor"}),
        ({"clip_value": 0.5}, {"clip_value": 0.5}),
        ({"agc": 0.01}, {"agc": 0.01, "eps": 1e-3}),
    ],
)
def test_the_first_field_says_which_rule_it_is(value: dict[str, Any], filled_in: dict[str, Any]) -> None:
    read = clip_of(value)
    assert read.model_dump(mode="json") == filled_in
    assert clip_of(filled_in) == clip_of(read) == read


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, None),
        (1.0, None),
        (None, None),
        ({"norm": 1.0}, None),
        ({"max_norm": 0}, "max_norm"),
        ({"max_norm": -1.0}, "max_norm"),
        ({"max_norm": math.inf}, "max_norm"),
        ({"max_norm": math.nan}, "max_norm"),
        ({"max_norm": "1"}, "max_norm"),
        ({"max_norm": True}, "max_norm"),
        ({"max_norm": 1.0, "norm_type": 0.5}, "norm_type"),
        ({"max_norm": 1.0, "norm_type": True}, "norm_type"),
        ({"max_norm": 1.0, "norm_type": "two"}, "norm_type"),
        ({"max_norm": 1.0, "norm_type": math.inf}, "norm_type"),
        ({"max_norm": 1.0, "norm_type": math.nan}, "norm_type"),
        ({"max_norm": 1.0, "per": "row"}, "per"),
        ({"max_norm": 1.0, "clip_value": 1.0}, "clip_value"),
        ({"clip_value": 0.0}, "clip_value"),
        ({"clip_value": 1.0, "norm_type": 2}, "norm_type"),
        ({"agc": 0.0}, "agc"),
        ({"agc": 0.01, "eps": 0.0}, "eps"),
        ({"agc": 0.01, "eps": 1e-50}, "eps"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_in_one_finding(value: Any, field: str | None) -> None:
    with pytest.raises(ValidationError) as refused:
        clip_of(value)
    findings = refused.value.errors()
    assert len(findings) == 1
    assert findings[0]["loc"][1:] == (() if field is None else (field,))
