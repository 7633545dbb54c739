"""AdEMAMix: Adam with a second, much slower mean of the gradient beside the first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import (
    LARGEST,
    Betas3,
    DecoupledDecay,
    Eps,
    Hyperparameters,
    LearningRate,
    Steps,
)
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


class AdEMAMix(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas3 = Field(
        (0.9, 0.999, 0.9999), description="Decay per step of the means of g and of g², and of the slow mean of g."
    )
    eps: Eps = 1e-8
    weight_decay: DecoupledDecay = 0.0
    alpha: float = Field(5.0, ge=0, le=LARGEST, description="Share of the slow mean beside the fast one.")
    alpha_warmup: Steps | None = Field(
        None, description="Steps over which alpha grows from 0; the paper takes the length of the run."
    )
    beta3_warmup: Steps | None = Field(
        None, description="Steps over which β₃ grows from β₁; the paper takes the length of the run."
    )


def state(_hyper: AdEMAMix) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_slow", "exp_avg_sq")


def step_(group: FlatGroup, hyper: AdEMAMix) -> Sums:
    """Apply one AdEMAMix step to a flat group, in place.

    With t = step, and α and β₃ where their warm-ups have come to:
        m ← β₁m + (1−β₁)g;  s ← β₃s + (1−β₃)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · ((m/(1−β₁ᵗ) + αs) / (√(v/(1−β₂ᵗ)) + ε) + λp)
    s, ``exp_avg_slow``, has no bias correction. α grows linearly; β₃ so that −1/ln β₃, the steps it remembers, does.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 20 and writes 16 bytes a float32 parameter.
    Source: Pagliardini et al. 2024, arXiv:2409.03137, Algorithm 1; α = 5 and the βs as in most of its experiments.
    """
    (beta1, beta2, _), t = hyper.betas, group.step
    rates = -hyper.lr / (1 - beta1**t), -hyper.lr * _alpha(hyper, t)
    new = 1 - beta1, 1 - _beta3(hyper, t), 1 - beta2
    root = 1 / math.sqrt(1 - beta2**t)
    constants = group.constants(-hyper.lr * hyper.weight_decay, *new, beta2, *rates, root, hyper.eps)
    return Sums(*_walk(*group.arrays(*state(hyper)), *constants))


def _alpha(hyper: AdEMAMix, step: int) -> float:
    return hyper.alpha * min(1.0, step / (hyper.alpha_warmup or 1))


def _beta3(hyper: AdEMAMix, step: int) -> float:
    (beta1, _, beta3), warmup = hyper.betas, hyper.beta3_warmup or 0
    if step >= warmup:
        return beta3
    share = step / warmup
    memory = (1 - share) * _memory(beta1) + share * _memory(beta3)
    return min(math.exp(-1 / memory), beta3) if memory else 0.0


def _memory(beta: float) -> float:
    """Steps after which a gradient's share has fallen to 1/e."""
    return -1 / math.log(beta) if beta else 0.0


@loop
def _walk(
    p: Any, g: Any, m: Any, s: Any, v: Any,
    decay: Any, new1: Any, new3: Any, new2: Any, beta2: Any, rate_m: Any, rate_s: Any, root: Any, eps: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = widen(g[i])
        m[i] = mean(m[i], grad, new1)
        s[i] = mean(s[i], grad, new3)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        p[i] = _moved(old, m[i], s[i], v[i], decay, rate_m, rate_s, root, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, m: Any, s: Any, v: Any, decay: Any, rate_m: Any, rate_s: Any, root: Any, eps: Any) -> Any:
    return p + fma(decay, p, (rate_m * m + rate_s * s) / (np.sqrt(v) * root + eps))
