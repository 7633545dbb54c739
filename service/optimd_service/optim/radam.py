"""RAdam: Adam that trusts its denominator only as far as it has seen enough gradients to know it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Betas, EitherDecay, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


class RAdam(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-8
    weight_decay: EitherDecay = 0.0
    decoupled_weight_decay: bool = Field(default=False, description="Decay as AdamW does, not through the gradient.")


def state(_hyper: RAdam) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq")


def step_(group: FlatGroup, hyper: RAdam) -> Sums:
    """Apply one RAdam step to a flat group, in place.

    With t = step, ρ∞ = 2/(1−β₂) − 1 and ρ = ρ∞ − 2t·β₂ᵗ/(1−β₂ᵗ), the number of gradients that v rests on:
        g ← g + λp, or decoupled p ← p·(1 − lr·λ)
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        ρ > 5:  r = √((ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ));  p ← p − lr·r · m/(1−β₁ᵗ) · √(1−β₂ᵗ)/(√v + ε)
        else:   p ← p − lr · m/(1−β₁ᵗ)

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Liu et al. 2020, arXiv:1908.03265; ρ > 5 where the paper has ρ > 4, as in torch.optim.RAdam.
    """
    beta1, beta2 = hyper.betas
    l2, kept = (0.0, 1 - hyper.lr * hyper.weight_decay) if hyper.decoupled_weight_decay else (hyper.weight_decay, 1.0)
    rate, trust = -hyper.lr / (1 - beta1**group.step), _trust(beta2, group.step)
    constants = group.constants(l2, kept, 1 - beta1, beta2, 1 - beta2, rate * (trust or 1.0))
    eps = [None] if trust is None else group.constants(hyper.eps)
    arguments: list[Any] = [*group.arrays(*state(hyper)), *constants, *eps]
    return Sums(*_walk(*arguments))


def _trust(beta2: float, step: int) -> float | None:
    """r·√(1−β₂ᵗ), or None while v rests on too few gradients."""
    forgotten = beta2**step
    most = 2 / (1 - beta2) - 1
    seen = most - 2 * step * forgotten / (1 - forgotten)
    if seen <= 5:
        return None
    rectified = (seen - 4) * (seen - 2) * most / ((most - 4) * (most - 2) * seen)
    return math.sqrt(rectified * (1 - forgotten))


@loop
def _walk(
    p: Any, g: Any, m: Any, v: Any, l2: Any, kept: Any, new1: Any, beta2: Any, new2: Any, rate: Any, eps: Any
) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(l2, old, widen(g[i]))
        m[i] = mean(m[i], grad, new1)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        if eps is None:
            p[i] = fma(rate, m[i], old * kept)
        else:
            p[i] = _moved(old, m[i], v[i], kept, rate, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, m: Any, v: Any, kept: Any, rate: Any, eps: Any) -> Any:
    return p * kept + rate * m / (np.sqrt(v) + eps)
