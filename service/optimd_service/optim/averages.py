"""Averages of the weights over the steps of a run, kept beside the weights and often better than they are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from optimd_service.optim.blocks import Each, array, constant, each_block
from optimd_service.optim.flat_group import require_alike
from optimd_service.optim.kernel import element, fma, loop

Every = Annotated[int, Field(ge=1, le=2**53, description="Average after every so many steps.")]


class _Average(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Ema(_Average):
    """An exponential moving average of the weights."""

    decay: Annotated[float, Field(ge=0, lt=1, description="What an update keeps of the average.")] = 0.999
    warmup: bool = Field(default=False, description="Keep no more than (1+t)/(10+t) in update t: forget the start.")
    every: Every = 1

    def due(self, step: int) -> bool:
        """Whether the weights after this step (≥ 1) go into the average."""
        return step % self.every == 0


class Swa(_Average):
    """The equal average of the weights after some of the steps."""

    start: Annotated[int, Field(ge=0, le=2**53, description="The first step whose weights count.")] = 0
    every: Every = 1

    def due(self, step: int) -> bool:
        """Whether the weights after this step (≥ 1) go into the average: after ``start``, start + every, …"""
        return step >= self.start and (step - self.start) % self.every == 0


def ema_(average: Tensor, params: Tensor, spec: Ema, updates: int, each: Each = map) -> None:
    """Take the weights into an exponential moving average, in place.

    With t = updates and d = decay, or min(decay, (1+t)/(10+t)) with warm-up:
        a ← p  if t = 0;  a ← d·a + (1−d)·p  otherwise

    Args:
      average: shape [n], float32 or float64; written. Its first values do not matter.
      params: shape [n], dtype of average; read only.
      updates: how many times weights went into the average before, ≥ 0.
      each: as ``map``, perhaps side by side.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 4 bytes a float32 parameter.
    Source: Polyak & Juditsky 1992; torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn. The warm-up is that
        of TensorFlow's ExponentialMovingAverage.
    """
    decay = min(spec.decay, (1 + updates) / (10 + updates)) if spec.warmup else spec.decay
    _approach_(average, params, 1 - decay if updates else 1.0, each)


def swa_(average: Tensor, params: Tensor, n_averaged: int, each: Each = map) -> None:
    """Take the weights into an equal average, in place.

    With n = n_averaged:
        a ← a + (p − a)/(n + 1)

    Args:
      average, params, each: as in ``ema_``.
      n_averaged: how many times weights went into the average before, ≥ 0.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 4 bytes a float32 parameter.
    Source: Izmailov et al. 2018, arXiv:1803.05407; torch.optim.swa_utils.AveragedModel.
    """
    _approach_(average, params, 1 / (n_averaged + 1), each)


def _approach_(average: Tensor, params: Tensor, weight: float, each: Each) -> None:
    require_alike(params, average=average)
    if weight == 1:  # copied, whatever the average held: 0·NaN would be NaN
        each_block(lambda a, p: a.copy_(p), each, average, params)
        return
    if not average.is_cpu:
        average.lerp_(params, weight)
        return
    share, rest = constant(weight, params), constant(weight, params) - constant(1, params)
    loop_ = _walk_from_average if weight < 0.5 else _walk_from_params
    each_block(lambda a, p: loop_(array(a), array(p), share if weight < 0.5 else rest), each, average, params)


# torch.lerp's two forms: from the end that is nearer, so that an average of equal weights is exactly those weights.
@element
def _between(origin: Any, a: Any, p: Any, share: Any) -> Any:
    return fma(share, p - a, origin)


@loop
def _walk_from_average(average: Any, params: Any, share: Any) -> None:
    for i in range(average.size):
        average[i] = _between(average[i], average[i], params[i], share)


@loop
def _walk_from_params(average: Any, params: Any, rest: Any) -> None:
    for i in range(average.size):
        average[i] = _between(params[i], average[i], params[i], rest)
