"""SGD: step against the gradient, with momentum if wanted."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters, L2Decay, LearningRate, Momentum
from optimd_service.optim.kernel import Sums, element, fma, loop, square, widen


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


def takes_rows(hyper: SGD) -> bool:
    """Whether a parameter whose gradient is 0 stays as it is."""
    return not hyper.momentum and not hyper.weight_decay


def step_(group: FlatGroup, hyper: SGD) -> Sums:
    """Apply one SGD step to a flat group, in place.

    With momentum μ and dampening τ:
        g ← g + λp
        b ← g if fresh, else μb + (1−τ)g        (without momentum, b is g)
        p ← p − lr · (g + μb if nesterov, else b)
    What a fresh b holds is not read.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 4 bytes a float32 parameter; with momentum 12 and 8.
    Source: Sutskever et al. 2013; lr multiplies b when it is used, not when it is built, as in torch.optim.SGD.
    """
    constants = group.constants(-hyper.lr, hyper.weight_decay, hyper.momentum, 1 - hyper.dampening)
    if not hyper.momentum:
        return Sums(*_walk(*group.arrays(), *constants[:2]))
    return Sums(*_walk_with_momentum(group.fresh, hyper.nesterov, *group.arrays("momentum_buffer"), *constants))


@loop
def _walk(p: Any, g: Any, rate: Any, decay: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        p[i] = fma(rate, fma(decay, old, widen(g[i])), old)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@loop
def _walk_with_momentum(
    fresh: Any, nesterov: Any, p: Any, g: Any, b: Any, rate: Any, decay: Any, momentum: Any, new: Any
) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(decay, old, widen(g[i]))
        b[i] = grad if fresh else _mean(b[i], grad, momentum, new)
        direction = fma(momentum, b[i], grad) if nesterov else b[i]
        p[i] = fma(rate, direction, old)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


# In the order of operations of torch's fused kernel, so that the bits are its own where its vectors reach.
@element
def _mean(b: Any, g: Any, momentum: Any, new: Any) -> Any:
    return fma(new, g, b * momentum)
