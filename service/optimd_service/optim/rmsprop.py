"""RMSprop: the gradient divided by a running root mean square of itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, require_alike
from optimd_service.optim.hyperparameters import STRUCTURAL, Eps, Hyperparameters, L2Decay, LearningRate, Momentum


class RMSprop(Hyperparameters):
    lr: LearningRate = 1e-2
    alpha: float = Field(0.99, ge=0, lt=1, description="Decay per step of the mean of g².")
    eps: Eps = 1e-8
    weight_decay: L2Decay = 0.0
    momentum: Momentum = 0.0
    centered: bool = Field(
        default=False, description="Divide by the standard deviation of g.", json_schema_extra=STRUCTURAL
    )


def state(hyper: RMSprop) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    needed = {"square_avg": True, "momentum_buffer": bool(hyper.momentum), "grad_avg": hyper.centered}
    return tuple(name for name, is_needed in needed.items() if is_needed)


def step_(group: FlatGroup, hyper: RMSprop, work: Sequence[Tensor]) -> None:
    """Update ``group`` by ``rmsprop_``."""
    rmsprop_(
        group.params,
        group.grads,
        group.state["square_avg"],
        group.state["momentum_buffer"] if hyper.momentum else None,
        group.state["grad_avg"] if hyper.centered else None,
        work=work,
        **hyper.model_dump(exclude={"centered"}),
    )


def rmsprop_(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None = None,
    grad_avg: Tensor | None = None,
    *,
    work: Sequence[Tensor],
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """Apply one RMSprop step to a flat group, in place.

    With momentum μ:
        g ← g + λp;  v ← αv + (1−α)g²
        d ← √v + ε, or centered: a ← αa + (1−α)g;  d ← √(v − a²) + ε
        p ← p − lr · g/d, or with momentum: b ← μb + g/d;  p ← p − lr·b

    Args:
      params: shape [n], float32 or float64; written.
      grads: shape [n], dtype of params; read only.
      square_avg: v, shape [n], dtype of params; written.
      momentum_buffer: b, shape [n], dtype of params; written. None exactly if momentum is 0.
      grad_avg: a, shape [n], dtype of params; written. None unless centered.
      work: two tensors of shape [n], dtype of params; overwritten.
      lr: ≥ 0, parameter units per step.   alpha: in [0, 1).   eps: > 0, in gradient units.
      weight_decay: λ ≥ 0, added to the gradient.   momentum: μ ≥ 0.

    Raises: ShapeMismatch, before anything is written.
    Cost: 5 passes in eager torch, 6 to 9 with the options; call it on blocks that fit the cache.
    Source: Hinton 2012 (lecture 6e); Graves 2013, arXiv:1308.0850, for the centered form. ε lies outside the root, as
        in torch.optim.RMSprop. Where rounding makes v − a² negative it counts as 0; torch gives NaN.
    """
    decayed, denominator = work
    require_alike(
        params, grads=grads, square_avg=square_avg, momentum_buffer=momentum_buffer, grad_avg=grad_avg, work=decayed
    )
    if weight_decay:
        grads = torch.add(grads, params, alpha=weight_decay, out=decayed)
    square_avg.mul_(alpha).addcmul_(grads, grads, value=1 - alpha)
    if grad_avg is None:
        torch.sqrt(square_avg, out=denominator)
    else:
        grad_avg.lerp_(grads, 1 - alpha)
        torch.addcmul(square_avg, grad_avg, grad_avg, value=-1, out=denominator).clamp_(min=0).sqrt_()
    denominator.add_(eps)
    if momentum_buffer is None:
        params.addcdiv_(grads, denominator, value=-lr)
    else:
        momentum_buffer.mul_(momentum).addcdiv_(grads, denominator)
        params.add_(momentum_buffer, alpha=-lr)
