"""Adagrad: the gradient divided by the root of the sum of all its squares so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Eps, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, square, widen


class Adagrad(Hyperparameters):
    lr: LearningRate = 1e-2
    lr_decay: float = Field(0.0, ge=0, le=LARGEST, description="The rate of step t is lr / (1 + (t−1)·lr_decay).")
    weight_decay: L2Decay = 0.0
    initial_accumulator_value: float = Field(
        0.0, ge=0, le=LARGEST, description="What the sum of g² begins at; of no effect after the first step."
    )
    eps: Eps = 1e-10


def state(_hyper: Adagrad) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("sum",)


def takes_rows(hyper: Adagrad) -> bool:
    """Whether a parameter whose gradient is 0 stays as it is, and its state too."""
    return not hyper.weight_decay


def begin_(part: FlatGroup, hyper: Adagrad) -> None:
    """Start the sum of squares at its initial value."""
    part.state["sum"].fill_(hyper.initial_accumulator_value)


def step_(group: FlatGroup, hyper: Adagrad) -> Sums:
    """Apply one Adagrad step to a flat group, in place.

    With t = step:
        g ← g + λp;  s ← s + g²
        p ← p − lr/(1 + (t−1)·lr_decay) · g / (√s + ε)

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 12 and writes 8 bytes a float32 parameter.
    Source: Duchi, Hazan & Singer 2011, JMLR 12; ε lies outside the root, as in torch.optim.Adagrad.
    """
    rate = -hyper.lr / (1 + (group.step - 1) * hyper.lr_decay)
    return Sums(*_walk(*group.arrays("sum"), *group.constants(rate, hyper.weight_decay, hyper.eps)))


@loop
def _walk(p: Any, g: Any, s: Any, rate: Any, decay: Any, eps: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(decay, old, widen(g[i]))
        s[i] = fma(grad, grad, s[i])
        p[i] = _moved(old, grad, s[i], rate, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, g: Any, s: Any, rate: Any, eps: Any) -> Any:
    return p + rate * g / (np.sqrt(s) + eps)
