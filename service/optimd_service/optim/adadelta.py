"""Adadelta: steps in the parameters' own units, from running mean squares of the gradient and of the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Eps, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean_of_squares, square, widen


class Adadelta(Hyperparameters):
    lr: LearningRate = 1.0
    rho: float = Field(0.9, ge=0, lt=1, description="ρ: decay per step of the means of g² and of the squared steps.")
    eps: Eps = 1e-6
    weight_decay: L2Decay = 0.0


def state(_hyper: Adadelta) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("square_avg", "acc_delta")


def step_(group: FlatGroup, hyper: Adadelta) -> Sums:
    """Apply one Adadelta step to a flat group, in place.

        g ← g + λp;  v ← ρv + (1−ρ)g²
        d ← √(u + ε) / √(v + ε) · g;  u ← ρu + (1−ρ)d²
        p ← p − lr·d

    ε lies inside the roots: it has the unit of g² in one and of d² in the other.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Zeiler 2012, arXiv:1212.5701; lr, of which the paper has none, as in torch.optim.Adadelta.
    """
    arrays = group.arrays("square_avg", "acc_delta")
    constants = group.constants(-hyper.lr, hyper.weight_decay, hyper.rho, 1 - hyper.rho, hyper.eps)
    return Sums(*_walk(*arrays, *constants))


@loop
def _walk(p: Any, g: Any, v: Any, u: Any, rate: Any, decay: Any, rho: Any, new: Any, eps: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(decay, old, widen(g[i]))
        v[i] = mean_of_squares(v[i], grad, rho, new)
        delta = _step(u[i], v[i], grad, eps)
        u[i] = mean_of_squares(u[i], delta, rho, new)
        p[i] = fma(rate, delta, old)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _step(u: Any, v: Any, g: Any, eps: Any) -> Any:
    return np.sqrt(u + eps) / np.sqrt(v + eps) * g
