"""Adam: a step of its own size for every parameter, from running means of the gradient and of its square."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, require_alike
from optimd_service.optim.fused import fused_adam_
from optimd_service.optim.hyperparameters import STRUCTURAL, Betas, Eps, Hyperparameters, L2Decay, LearningRate


class Adam(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-8
    weight_decay: L2Decay = 0.0
    amsgrad: bool = Field(
        default=False, description="Divide by the largest mean of g² so far.", json_schema_extra=STRUCTURAL
    )


def state(hyper: Adam) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if hyper.amsgrad else ("exp_avg", "exp_avg_sq")


def step_(group: FlatGroup, hyper: Adam, _work: Sequence[Tensor]) -> None:
    """Update ``group`` by ``adam_``."""
    adam_(
        group.params,
        group.grads,
        *(group.state[name] for name in state(hyper)),
        step=group.step,
        lr=hyper.lr,
        betas=hyper.betas,
        eps=hyper.eps,
        weight_decay=hyper.weight_decay,
    )


def adam_(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None = None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Apply one Adam step to a flat group, in place.

    With t = step:
        g ← g + λp
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
    AMSGrad keeps v̂ ← max(v̂, v) and divides by v̂ in place of v.

    Args:
      params: shape [n], float32 or float64; written.
      grads: shape [n], dtype of params; read only.
      exp_avg, exp_avg_sq: m and v, shape [n], dtype of params; written.
      max_exp_avg_sq: v̂, shape [n], dtype of params; written. None without AMSGrad.
      step: number of this update, ≥ 1.   lr: ≥ 0, parameter units per step.
      betas: each in [0, 1).   eps: > 0, in gradient units.   weight_decay: λ ≥ 0, added to the gradient.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter; with AMSGrad 20 and 16.
    Source: Kingma & Ba 2015, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237. The maximum is taken before bias
        correction, as in torch.optim.Adam; the paper has no correction at all.
    """
    require_alike(params, grads=grads, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, max_exp_avg_sq=max_exp_avg_sq)
    fused_adam_(
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
        decay="l2",
        step=step,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )
