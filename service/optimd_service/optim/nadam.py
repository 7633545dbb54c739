"""NAdam: Adam with Nesterov's momentum, whose factor grows towards β₁ from step to step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.hyperparameters import LARGEST, Betas, EitherDecay, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


class NAdam(Hyperparameters):
    lr: LearningRate = 2e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-8
    weight_decay: EitherDecay = 0.0
    momentum_decay: float = Field(4e-3, ge=0, le=LARGEST, description="ψ: how soon the momentum factor reaches β₁.")
    decoupled_weight_decay: bool = Field(default=False, description="Decay as AdamW does, not through the gradient.")


def state(_hyper: NAdam) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq")


def advance(hyper: NAdam, step: int, numbers: Numbers) -> Numbers:
    """``mu_product``, Πμ: the product of the momentum factors of all updates so far; 1 before the first."""
    return {"mu_product": numbers["mu_product"] * _mu(hyper, step)}


def step_(group: FlatGroup, hyper: NAdam) -> Sums:
    """Apply one NAdam step to a flat group, in place.

    With t = step, μₜ = β₁(1 − ½·0.96^(tψ)), and Πμ = μ₁·…·μₜ:
        g ← g + λp, or decoupled p ← p·(1 − lr·λ)
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · ((1−μₜ)/(1−Πμ)·g + μₜ₊₁/(1−Πμ·μₜ₊₁)·m) / (√(v/(1−β₂ᵗ)) + ε)

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam"; 0.96 and ψ as in torch.optim.NAdam.
    """
    (beta1, beta2), product = hyper.betas, group.numbers["mu_product"]
    mu, next_mu = _mu(hyper, group.step), _mu(hyper, group.step + 1)
    l2, kept = (0.0, 1 - hyper.lr * hyper.weight_decay) if hyper.decoupled_weight_decay else (hyper.weight_decay, 1.0)
    rates = -hyper.lr * (1 - mu) / (1 - product), -hyper.lr * next_mu / (1 - product * next_mu)
    constants = group.constants(l2, kept, 1 - beta1, beta2, 1 - beta2, *rates, 1 - beta2**group.step, hyper.eps)
    return Sums(*_walk(*group.arrays(*state(hyper)), *constants))


def _mu(hyper: NAdam, step: int) -> float:
    return hyper.betas[0] * (1 - 0.5 * math.pow(0.96, step * hyper.momentum_decay))


@loop
def _walk(
    p: Any, g: Any, m: Any, v: Any,
    l2: Any, kept: Any, new1: Any, beta2: Any, new2: Any, rate_g: Any, rate_m: Any, correction: Any, eps: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(l2, old, widen(g[i]))
        m[i] = mean(m[i], grad, new1)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        p[i] = _moved(old, grad, m[i], v[i], kept, rate_g, rate_m, correction, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, g: Any, m: Any, v: Any, kept: Any, rate_g: Any, rate_m: Any, correction: Any, eps: Any) -> Any:
    root = np.sqrt(v / correction) + eps
    return p * kept + rate_g * g / root + rate_m * m / root
