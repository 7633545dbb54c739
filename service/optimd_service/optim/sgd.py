"""SGD: step against the gradient, with momentum if wanted."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, require_alike
from optimd_service.optim.fused import fused_sgd_
from optimd_service.optim.hyperparameters import Hyperparameters, L2Decay, LearningRate, Momentum


class SGD(Hyperparameters):
    lr: LearningRate = 1e-3
    momentum: Momentum = 0.0
    dampening: float = Field(0.0, ge=0, le=1, description="What the newest gradient loses on its way into momentum.")
    weight_decay: L2Decay = 0.0
    nesterov: bool = Field(default=False, description="Look ahead along momentum; needs momentum and no dampening.")

    @field_validator("nesterov")
    @classmethod
    def _nesterov_needs_plain_momentum(cls, nesterov: bool, others: ValidationInfo) -> bool:
        if nesterov and not (others.data.get("momentum") and others.data.get("dampening") == 0):
            raise ValueError("nesterov needs momentum above 0 and dampening 0")
        return nesterov


def state(hyper: SGD) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("momentum_buffer",) if hyper.momentum else ()


def step_(group: FlatGroup, hyper: SGD, _work: Sequence[Tensor]) -> None:
    """Update ``group`` by ``sgd_``."""
    buffer = group.state["momentum_buffer"] if hyper.momentum else None
    sgd_(group.params, group.grads, buffer, fresh=group.fresh, **dict(hyper))


def sgd_(
    params: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor | None,
    *,
    fresh: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Apply one SGD step to a flat group, in place.

    With momentum μ and dampening τ:
        g ← g + λp
        b ← g if fresh, else μb + (1−τ)g        (without momentum, b is g)
        p ← p − lr · (g + μb if nesterov, else b)

    Args:
      params: shape [n], float32 or float64; written.
      grads: shape [n], dtype of params; read only.
      momentum_buffer: b, shape [n], dtype of params; written. None exactly if momentum is 0.
      fresh: b has not been written yet, and whatever it holds is not read.
      lr: ≥ 0, parameter units per step.   momentum: μ ≥ 0.   dampening: τ in [0, 1].
      weight_decay: λ ≥ 0, added to the gradient.   nesterov: needs μ > 0 and τ = 0.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 4 bytes a float32 parameter; with momentum 12 and 8.
    Source: Sutskever et al. 2013; lr multiplies b when it is used, not when it is built, as in torch.optim.SGD.
    """
    require_alike(params, grads=grads, momentum_buffer=momentum_buffer)
    fused_sgd_(
        params,
        grads,
        momentum_buffer,
        fresh=fresh,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )
