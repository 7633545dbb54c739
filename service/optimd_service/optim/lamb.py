"""LAMB: Adam's direction, stretched for each tensor to the length of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Betas, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen
from optimd_service.optim.tensorwise import Shape, flattened


class LAMB(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-6
    weight_decay: float = Field(
        0.01, ge=0, le=LARGEST, description="λ: λ·p is added to Adam's direction, before its length is taken."
    )


def state(_hyper: LAMB) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq")


def shapes(hyper: LAMB, shape: Shape) -> Mapping[str, Shape]:
    """The means have the shape of the tensor."""
    return dict.fromkeys(state(hyper), shape)


def step_(group: FlatGroup, hyper: LAMB) -> Sums:
    """Apply one LAMB step to one tensor, in place.

    With t = step and 2-norms over the tensor:
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        u = m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε) + λp
        p ← p − lr · (‖p‖/‖u‖) · u, where the trust ratio ‖p‖/‖u‖ is 1 if either norm is 0

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 28 and writes 12 bytes a float32 parameter: the direction is computed twice, not stored.
    Source: You et al. 2020, arXiv:1904.00962, Algorithm 2, with φ the identity and its bias correction. Others differ:
        version 3 of the paper, and pytorch_optimizer by default, have no bias correction and bound ‖p‖ by 10;
        NVIDIA's fused LAMB first clips all gradients by their common norm.
    """
    (beta1, beta2), step = hyper.betas, group.step
    p, g, m, v = flattened(group).arrays(*state(hyper))
    scales = group.constants(1 - beta1**step, math.sqrt(1 - beta2**step), hyper.eps, hyper.weight_decay)
    weights, direction = _measure(p, g, m, v, *group.constants(1 - beta1, beta2, 1 - beta2), *scales)
    trust = math.sqrt(weights / direction) if weights and direction else 1.0
    return Sums(*_move(p, m, v, *scales, *group.constants(-hyper.lr * trust)))


@loop
def _measure(
    p: Any, g: Any, m: Any, v: Any, new1: Any, beta2: Any, new2: Any, bias: Any, root: Any, eps: Any, decay: Any
) -> Any:
    weights = direction = 0.0
    for i in range(p.size):
        grad = widen(g[i])
        m[i] = mean(m[i], grad, new1)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        weights += square(p[i])
        direction += square(_direction(p[i], m[i], v[i], bias, root, eps, decay))
    return weights, direction


@loop
def _move(p: Any, m: Any, v: Any, bias: Any, root: Any, eps: Any, decay: Any, rate: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        p[i] = fma(rate, _direction(old, m[i], v[i], bias, root, eps, decay), old)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _direction(p: Any, m: Any, v: Any, bias: Any, root: Any, eps: Any, decay: Any) -> Any:
    return fma(decay, p, m / bias / (np.sqrt(v) / root + eps))
