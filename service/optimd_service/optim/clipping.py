"""Clipping gradients before a step: by their norm, by value, or by the length of the weights they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from torch import Tensor

from optimd_service.optim.agc import clip_rows_
from optimd_service.optim.blocks import BLOCK, Each, each_block, multiply_
from optimd_service.optim.hyperparameters import LARGEST, Eps
from optimd_service.optim.pnorm import p_norm
from optimd_service.optim.units import Units, each_unit, tensors
from optimd_service.types import Layout

# Keeps the factor finite where the norm is 0; torch.nn.utils' own.
NORM_EPS = 1e-6


def _an_order(value: Any) -> Any:
    # Said here, in one sentence: a union would answer with one finding for each of its members.
    number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= LARGEST
    if number or value == "inf":
        return value
    raise PydanticCustomError("norm_type", 'Input should be a number of at least 1, or "inf"')


Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Order = Annotated[Annotated[float, Field(ge=1, le=LARGEST)] | Literal["inf"], BeforeValidator(_an_order)]


class _Clip(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ClipNorm(_Clip):
    """Shorten gradients whose norm is larger than ``max_norm``, as torch.nn.utils.clip_grad_norm_ does."""

    max_norm: Positive = Field(description="The largest norm, in gradient units.")
    norm_type: Order = Field(2.0, description='p of the p-norm, ≥ 1; "inf" is the largest element.')
    per: Literal["all", "tensor"] = Field("all", description="One norm over all tensors, or one for each.")

    @property
    def p(self) -> float:
        return float(self.norm_type)


class ClipValue(_Clip):
    """Limit every element to −clip_value … clip_value, as torch.nn.utils.clip_grad_value_ does."""

    clip_value: Positive = Field(description="The largest element, in gradient units.")


class ClipAdaptive(_Clip):
    """Shorten each row's gradient to ``agc`` times the row's own length (Brock et al. 2021, arXiv:2102.06171)."""

    agc: Positive = Field(description="The largest ratio of gradient to weights; the paper uses 0.01.")
    eps: Eps = Field(1e-3, description="Shorter weights count as this long.")


def _kind(value: Any) -> str | None:
    fields: Iterable[str] = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((field for field in ("max_norm", "clip_value", "agc") if field in fields), None)


Clip = Annotated[
    Annotated[ClipNorm, Tag("max_norm")]
    | Annotated[ClipValue, Tag("clip_value")]
    | Annotated[ClipAdaptive, Tag("agc")],
    Discriminator(_kind, "clip_kind", "Input should be an object with max_norm, clip_value or agc"),
]
"""A session's ``clip``: which rule it is, its first field says."""


def clip_(
    grads: Tensor,
    params: Tensor,
    layout: Layout,
    clip: ClipNorm | ClipValue | ClipAdaptive,
    grad_norm: float,
    each: Each = map,
) -> float:
    """Clip the gradients of a session in place, before they reach the optimizer.

    Args:
      grads: shape [n], n ≤ layout.numel, float32, float64 or bfloat16, finite; written where clipped. Tensors that end
        behind n have no gradients.
      params: shape [≥ n], float32 or float64; read only, and only by adaptive clipping.
      layout: where the tensors lie.
      grad_norm: the 2-norm of ``grads`` as they are, finite; not computed again.
      each: as ``map``, perhaps side by side.

    Returns: the receipt's clip_scale, the smallest factor that any element was multiplied by; 1 where nothing was
        clipped, and nothing written then. By norm, it is min(1, max_norm/(norm + 1e-6)), the factor of all elements or
        the smallest of any tensor; by value, clip_value over the largest element; adaptive, the smallest of any row.
    Cost: one read and one write for a norm that is already known; one read more otherwise.
    """
    if isinstance(clip, ClipAdaptive):
        return clip_rows_(grads, params, layout, clip.agc, clip.eps, each)
    if isinstance(clip, ClipValue):
        return _clip_values_(grads, clip.clip_value, each)
    if clip.per == "tensor":
        return _clip_tensors_(grads, layout, clip, each)
    return _shorten_(grads, clip, grad_norm if clip.p == 2 else p_norm(grads, clip.p, each), each)


def _shorten_(grads: Tensor, clip: ClipNorm, norm: float, each: Each) -> float:
    factor = min(1.0, clip.max_norm / (norm + NORM_EPS))
    multiply_(grads, factor, each)
    return factor


def _clip_tensors_(grads: Tensor, layout: Layout, clip: ClipNorm, each: Each) -> float:
    def shorten_(tensor: Units, each: Each) -> float:
        part = grads[tensor.start : tensor.stop]
        return _shorten_(part, clip, p_norm(part, clip.p, each), each)

    short: list[Units] = []
    long: list[Units] = []
    for tensor in tensors(layout, len(grads)):
        (short if tensor.width <= BLOCK else long).append(tensor)
    # Workers share the short tensors among them, and the blocks of one long tensor after the other.
    factors = each_unit(lambda tensor: shorten_(tensor, map), short, each)
    return min((*factors, *(shorten_(tensor, each) for tensor in long)), default=1.0)


def _clip_values_(grads: Tensor, clip_value: float, each: Each) -> float:
    # As the gradients' dtype has it: an element that is equal to it is not clipped.
    bound = torch.tensor(clip_value, dtype=grads.dtype).item()

    def clamp_(block: Tensor) -> float:
        largest = p_norm(block, math.inf)
        if largest <= bound:
            return 1.0
        block.clamp_(-bound, bound)
        return bound / largest

    return min(each_block(clamp_, each, grads), default=1.0)
