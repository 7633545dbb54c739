"""Prodigy: Adam that estimates its own learning rate, from how far the weights have come and where gradients point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.hyperparameters import LARGEST, Beta, Betas, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean_of_squares, square, widen

NUMBERS: Mapping[str, float] = MappingProxyType({"d": 0.0, "d_max": 0.0, "d_numerator": 0.0, "d_lr": 0.0})
"""As they are before the first update: a d of 0 stands for ``d0``, and no estimate is ever 0."""


class Prodigy(Hyperparameters):
    lr: LearningRate = Field(1.0, description="Factor of the estimated learning rate d; a schedule's place.")
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of d·g and of (d·g)².")
    beta3: Beta | None = Field(None, description="Decay per step of the sums that d is estimated from; √β₂ if null.")
    eps: Eps = 1e-8
    weight_decay: float = Field(0.0, ge=0, le=LARGEST, description="λ: d·lr·λ·p is taken from the parameter.")
    use_bias_correction: bool = Field(default=False, description="Correct the step's size as Adam does.")
    safeguard_warmup: bool = Field(default=False, description="Keep lr out of d's denominator, for a warm-up of lr.")
    d0: float = Field(1e-6, ge=1e-18, le=LARGEST, description="First estimate of d; rather too small than too large.")
    d_coef: float = Field(1.0, gt=0, le=LARGEST, description="Factor of the estimate d.")
    growth_rate: float | None = Field(None, ge=1, description="Most that d grows by in a step; no bound if null.")


def state(_hyper: Prodigy) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq", "s", "p0")


def begin_(part: FlatGroup, _hyper: Prodigy) -> None:
    """Keep the weights that the run begins with."""
    part.state["p0"].copy_(part.params)


def survey_(part: FlatGroup, hyper: Prodigy) -> tuple[float, ...]:
    """Update the moments and s of a part of a group, in place, and sum up what d is estimated from.

    Returns: Σ g·(p0 − p) and Σ |s|, in float64; nothing is written and both are 0 while lr is 0.
    """
    if not hyper.lr:
        return 0.0, 0.0
    (beta1, beta2), d = hyper.betas, part.numbers["d"] or hyper.d0
    into_s = d / hyper.d0 * (d if hyper.safeguard_warmup else _d_lr(hyper, part.step, d))
    constants = part.constants(beta1, d * (1 - beta1), beta2, d * d * (1 - beta2), _beta3(hyper), into_s)
    numerator, denominator = _survey(*part.arrays(*state(hyper)), *constants)
    return numerator, denominator


def settle(hyper: Prodigy, step: int, numbers: Numbers, sums: tuple[float, ...]) -> Numbers:
    """d, its largest estimate and its numerator for the next update, and ``d_lr``, the rate of this one.

    Args:
      numbers: as the update before left them.   sums: what ``survey_`` gave, over the whole group.
    """
    before = numbers["d"] or hyper.d0
    towards, denominator = sums
    if not denominator:  # every gradient so far was 0, or lr is
        return {**numbers, "d": before, "d_max": max(numbers["d_max"], before), "d_lr": 0.0}
    d_lr = _d_lr(hyper, step, before)
    numerator = _beta3(hyper) * numbers["d_numerator"] + before / hyper.d0 * d_lr * towards
    estimate = hyper.d_coef * numerator / denominator
    largest = max(numbers["d_max"], hyper.d0, estimate)
    grown = max(before, estimate) if before == hyper.d0 else before
    d = min(largest, math.inf if hyper.growth_rate is None else grown * hyper.growth_rate)
    return {"d": d, "d_max": largest, "d_numerator": numerator, "d_lr": d_lr}


def step_(group: FlatGroup, hyper: Prodigy) -> Sums:
    """Move the weights of a flat group, in place; the end of a Prodigy step.

    With t = step, c = √(1−β₂ᵗ)/(1−β₁ᵗ), or 1 without bias correction, γ = lr·c, and sums over the whole group:
        m ← β₁m + (1−β₁)dg;  v ← β₂v + (1−β₂)(dg)²;  s ← β₃s + (d/d0)·dγ·g          ``survey_``
        n ← β₃n + (d/d0)·dγ·Σg(p0 − p);  d̂ = d_coef · n/Σ|s|
        d⁺ = min(max(d_max, d̂), d·growth_rate)                                         ``settle``
        p ← p·(1 − dγλ) − dγ · m/(√v + d⁺ε);  d ← d⁺                                   here
    d is one for all tensors of a hyperparameter group; each group has its own. safeguard_warmup takes d for dγ in s.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 36 and writes 16 bytes a float32 parameter, in two passes.
    Source: Mishchenko & Defazio 2023, arXiv:2306.06101, Algorithm 4; β₃ in place of its √β₂, growth_rate,
        safeguard_warmup, and a move by the d before the estimate, as in the authors' code.
    """
    p, _, m, v, *_ = group.arrays(*state(hyper))
    d_lr = group.numbers["d_lr"]
    constants = group.constants(-d_lr * hyper.weight_decay, -d_lr, group.numbers["d"] * hyper.eps)
    return Sums(*_walk(p, m, v, *constants))


def _beta3(hyper: Prodigy) -> float:
    return math.sqrt(hyper.betas[1]) if hyper.beta3 is None else hyper.beta3


def _d_lr(hyper: Prodigy, step: int, d: float) -> float:
    if not hyper.use_bias_correction:
        return d * hyper.lr
    beta1, beta2 = hyper.betas
    return d * hyper.lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)


@loop
def _survey(
    p: Any, g: Any, m: Any, v: Any, s: Any, p0: Any,
    beta1: Any, new1: Any, beta2: Any, new2: Any, beta3: Any, into_s: Any,
) -> Any:  # fmt: skip
    numerator = denominator = 0.0
    for i in range(p.size):
        grad = widen(g[i])
        m[i] = fma(new1, grad, m[i] * beta1)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        s[i] = fma(into_s, grad, s[i] * beta3)
        numerator += np.float64(grad) * np.float64(p0[i] - p[i])
        denominator += np.float64(abs(s[i]))
    return numerator, denominator


@loop
def _walk(p: Any, m: Any, v: Any, decay: Any, rate: Any, root_eps: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        p[i] = _moved(old, m[i], v[i], decay, rate, root_eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


@element
def _moved(p: Any, m: Any, v: Any, decay: Any, rate: Any, root_eps: Any) -> Any:
    return fma(decay, p, p) + rate * m / (np.sqrt(v) + root_eps)
