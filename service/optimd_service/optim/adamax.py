"""Adamax: Adam that divides by a decaying maximum of |g| in place of a root mean square."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Betas, Eps, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, square, widen


class Adamax(Hyperparameters):
    lr: LearningRate = 2e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the mean of g and of the maximum of |g|.")
    eps: Eps = 1e-8
    weight_decay: L2Decay = 0.0


def state(_hyper: Adamax) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_inf")


def step_(group: FlatGroup, hyper: Adamax) -> Sums:
    """Apply one Adamax step to a flat group, in place.

    With t = step:
        g ← g + λp
        m ← β₁m + (1−β₁)g;  u ← max(β₂u, |g| + ε)
        p ← p − lr/(1−β₁ᵗ) · m/u

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Kingma & Ba 2015, arXiv:1412.6980, section 7.1; ε stands beside |g|, as in torch.optim.Adamax, and is not in
        the paper.
    """
    beta1, beta2 = hyper.betas
    rate = -hyper.lr / (1 - beta1**group.step)
    constants = group.constants(hyper.weight_decay, 1 - beta1, beta2, hyper.eps, rate)
    return Sums(*_walk(*group.arrays(*state(hyper)), *constants))


@loop
def _walk(p: Any, g: Any, m: Any, u: Any, l2: Any, new1: Any, beta2: Any, eps: Any, rate: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(l2, old, widen(g[i]))
        m[i] = mean(m[i], grad, new1)
        u[i] = _largest(u[i], grad, beta2, eps)
        p[i] = _moved(old, m[i], u[i], rate)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _largest(u: Any, g: Any, beta: Any, eps: Any) -> Any:
    return max(u * beta, abs(g) + eps)


@element
def _moved(p: Any, m: Any, u: Any, rate: Any) -> Any:
    return p + rate * m / u
