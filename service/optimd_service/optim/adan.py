"""Adan: Nesterov's momentum from differences of successive gradients, so that it needs no look ahead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Betas3, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


class Adan(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas3 = Field(
        (0.98, 0.92, 0.99), description="Decay per step of the means of g, of g's differences, and of (g + β₂Δg)²."
    )
    eps: Eps = 1e-8
    weight_decay: float = Field(
        0.0, ge=0, le=LARGEST, description="λ: divides the moved parameter by 1 + lr·λ; with no_prox, lr·λ·p is taken."
    )
    no_prox: bool = Field(default=False, description="Decay as AdamW does, before the move.")


def state(_hyper: Adan) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")


def begin_(part: FlatGroup, _hyper: Adan) -> None:
    """Let the first difference of gradients be 0."""
    part.state["neg_pre_grad"].copy_(part.grads).neg_()


def step_(group: FlatGroup, hyper: Adan) -> Sums:
    """Apply one Adan step to a flat group, in place.

    With t = step and Δ = g − the previous g, which ``neg_pre_grad`` holds with the other sign; 0 at first:
        m ← β₁m + (1−β₁)g;  d ← β₂d + (1−β₂)Δ;  v ← β₃v + (1−β₃)(g + β₂Δ)²
        p ← p − lr · (m/(1−β₁ᵗ) + β₂·d/(1−β₂ᵗ)) / (√(v/(1−β₃ᵗ)) + ε)
        p ← p/(1 + lr·λ), or with no_prox p ← p·(1 − lr·λ) before the move

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 24 and writes 20 bytes a float32 parameter.
    Source: Xie et al. 2022, arXiv:2208.06677, Algorithm 1. The βs are what is kept, as in the authors' code; the
        paper's are 1 minus these. Bias correction and ε outside the root are also the code's.
    """
    (beta1, beta2, beta3), t = hyper.betas, group.step
    rates = -hyper.lr / (1 - beta1**t), -hyper.lr * beta2 / (1 - beta2**t)
    decay = hyper.lr * hyper.weight_decay
    before, after = (1 - decay, 1.0) if hyper.no_prox else (1.0, 1 + decay)
    root = math.sqrt(1 - beta3**t)
    constants = (before, after, 1 - beta1, 1 - beta2, beta2, beta3, 1 - beta3, *rates, root, hyper.eps)
    return Sums(*_walk(*group.arrays(*state(hyper)), *group.constants(*constants)))


@loop
def _walk(
    p: Any, g: Any, m: Any, d: Any, v: Any, negated: Any, before: Any, after: Any, new1: Any, new2: Any,
    beta2: Any, beta3: Any, new3: Any, rate_m: Any, rate_d: Any, root: Any, eps: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(p.size):
        old, grad = p[i], widen(g[i])
        difference = _difference(grad, negated[i])
        ahead = fma(beta2, difference, grad)
        negated[i] = -grad
        m[i] = mean(m[i], grad, new1)
        d[i] = mean(d[i], difference, new2)
        v[i] = mean_of_squares(v[i], ahead, beta3, new3)
        p[i] = _moved(old, m[i], d[i], v[i], before, after, rate_m, rate_d, root, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _difference(g: Any, negated: Any) -> Any:
    return g + negated


@element
def _moved(
    p: Any, m: Any, d: Any, v: Any, before: Any, after: Any, rate_m: Any, rate_d: Any, root: Any, eps: Any
) -> Any:
    denominator = np.sqrt(v) / root + eps
    return (p * before + rate_m * m / denominator + rate_d * d / denominator) / after
