"""Lion: every parameter moves by lr, in the direction that momentum and gradient agree on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, require_alike
from optimd_service.optim.hyperparameters import Betas, DecoupledDecay, Hyperparameters, LearningRate


class Lion(Hyperparameters):
    lr: LearningRate = 1e-4
    betas: Betas = Field((0.9, 0.99), description="Share of momentum in the direction, and its decay per step.")
    weight_decay: DecoupledDecay = 0.0


def state(_hyper: Lion) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg",)


def step_(group: FlatGroup, hyper: Lion, work: Sequence[Tensor]) -> None:
    """Update ``group`` by ``lion_``."""
    lion_(group.params, group.grads, group.state["exp_avg"], work=work[0], **dict(hyper))


def lion_(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    *,
    work: Tensor,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Apply one Lion step to a flat group, in place.

    p ← p − lr · (sign(β₁m + (1−β₁)g) + λp)
    m ← β₂m + (1−β₂)g

    Args:
      params: shape [n], float32 or float64; written.
      grads: shape [n], dtype of params; read only.
      exp_avg: m, shape [n], dtype of params; written.
      work: shape [n], dtype of params; overwritten.
      lr: ≥ 0, parameter units per step.   betas: each in [0, 1).   weight_decay: λ ≥ 0, no unit.

    Raises: ShapeMismatch, before anything is written.
    Cost: 5 passes in eager torch; call it on blocks that fit the cache.
    Source: Chen et al. 2023, arXiv:2302.06675; lr multiplies λ, as there.
    """
    require_alike(params, grads=grads, exp_avg=exp_avg, work=work)
    direction = torch.lerp(exp_avg, grads, 1 - betas[0], out=work).sign_()
    if weight_decay:
        # Not params.mul_(1 - lr·λ): that factor, rounded to float32, is wrong the same way at every step.
        direction.add_(params, alpha=weight_decay)
    params.add_(direction, alpha=-lr)
    exp_avg.lerp_(grads, 1 - betas[1])
