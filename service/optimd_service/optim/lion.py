"""Lion: every parameter moves by lr, in the direction that momentum and gradient agree on."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Betas, DecoupledDecay, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, square, widen


class Lion(Hyperparameters):
    lr: LearningRate = 1e-4
    betas: Betas = Field((0.9, 0.99), description="Share of momentum in the direction, and its decay per step.")
    weight_decay: DecoupledDecay = 0.0


def state(_hyper: Lion) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg",)


def step_(group: FlatGroup, hyper: Lion) -> Sums:
    """Apply one Lion step to a flat group, in place.

        p ← p − lr · (sign(β₁m + (1−β₁)g) + λp)
        m ← β₂m + (1−β₂)g

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 12 and writes 8 bytes a float32 parameter.
    Source: Chen et al. 2023, arXiv:2302.06675; lr multiplies λ, as there.
    """
    beta1, beta2 = hyper.betas
    constants = group.constants(-hyper.lr, hyper.weight_decay, 1 - beta1, 1 - beta2)
    return Sums(*_walk(*group.arrays("exp_avg"), *constants))


@loop
def _walk(p: Any, g: Any, m: Any, rate: Any, decay: Any, new1: Any, new2: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old, grad = p[i], widen(g[i])
        p[i] = _moved(old, mean(m[i], grad, new1), rate, decay)
        m[i] = mean(m[i], grad, new2)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, direction: Any, rate: Any, decay: Any) -> Any:
    # Not p·(1 − lr·λ): that factor, rounded to float32, is wrong the same way at every step.
    return fma(rate, fma(decay, p, np.sign(direction)), p)
