"""RMSprop: the gradient divided by a running root mean square of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import STRUCTURAL, Eps, Hyperparameters, L2Decay, LearningRate, Momentum
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


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


def step_(group: FlatGroup, hyper: RMSprop) -> Sums:
    """Apply one RMSprop step to a flat group, in place.

    With momentum μ:
        g ← g + λp;  v ← αv + (1−α)g²
        d ← √v + ε, or centered: a ← αa + (1−α)g;  d ← √(v − a²) + ε
        p ← p − lr · g/d, or with momentum: b ← μb + g/d;  p ← p − lr·b

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 12 and writes 8 bytes a float32 parameter; momentum and centered add 4 and 4 each.
    Source: Hinton 2012 (lecture 6e); Graves 2013, arXiv:1308.0850, for the centered form. ε lies outside the root, as
        in torch.optim.RMSprop. Where rounding makes v − a² negative it counts as 0; torch gives NaN.
    """
    buffers = state(hyper)
    p, g, *arrays = group.arrays(*buffers)
    by_name = dict(zip(buffers, arrays, strict=True))
    optional = (by_name.get("momentum_buffer"), by_name.get("grad_avg"))
    constants = group.constants(
        -hyper.lr, hyper.weight_decay, hyper.alpha, 1 - hyper.alpha, hyper.eps, hyper.momentum, 0
    )
    return Sums(*_walk(p, g, by_name["square_avg"], *optional, *constants))


@loop
def _walk(
    p: Any, g: Any, v: Any, b: Any, a: Any,
    rate: Any, decay: Any, alpha: Any, new: Any, eps: Any, momentum: Any, zero: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(decay, old, widen(g[i]))
        v[i] = mean_of_squares(v[i], grad, alpha, new)
        if a is None:
            variance = v[i]
        else:
            a[i] = mean(a[i], grad, new)
            variance = max(_variance(v[i], a[i]), zero)
        if b is None:
            p[i] = _moved(old, grad, variance, rate, eps)
        else:
            b[i] = _with_momentum(b[i], grad, variance, momentum, eps)
            p[i] = fma(rate, b[i], old)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _variance(v: Any, a: Any) -> Any:
    return fma(-a, a, v)


@element
def _moved(p: Any, g: Any, variance: Any, rate: Any, eps: Any) -> Any:
    return p + rate * g / (np.sqrt(variance) + eps)


@element
def _with_momentum(b: Any, g: Any, variance: Any, momentum: Any, eps: Any) -> Any:
    return b * momentum + g / (np.sqrt(variance) + eps)
