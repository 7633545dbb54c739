"""Schedule-free AdamW: AdamW whose average of weights takes the place of momentum and of a learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, Strict
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Beta, Eps, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean_of_squares, square, widen
from optimd_service.optim.schedule_free import (
    Interpolation,
    RatePower,
    StepPower,
    WarmupSteps,
    evaluation_weights,
    moved_y,
    newest_share,
    rate,
)


class ScheduleFreeAdamW(Hyperparameters):
    lr: LearningRate = 2.5e-3
    betas: Annotated[tuple[Interpolation, Beta], Strict(strict=False)] = Field(
        (0.9, 0.999), description="Share of the mean x in the weights y that gradients are of; decay of the mean of g²."
    )
    eps: Eps = 1e-8
    weight_decay: L2Decay = Field(0.0, description="λ: lr·λ·y is part of the step.")
    warmup_steps: WarmupSteps = 0
    r: StepPower = 0.0
    weight_lr_power: RatePower = 2.0


def state(_hyper: ScheduleFreeAdamW) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("z", "exp_avg_sq")


def step_(group: FlatGroup, hyper: ScheduleFreeAdamW) -> Sums:
    """Apply one schedule-free AdamW step to a flat group, in place.

    The weights are y; with t = step, γ = lr·min(1, t/warmup_steps), w = tʳ·(largest γ)^weight_lr_power, c = w/Σw:
        v ← β₂v + (1−β₂)g²;  u = g/(√(v/(1−β₂ᵗ)) + ε) + λy
        z ← z − γu;  x ← (1−c)x + c·z;  y ← (1−β₁)z + β₁x
    without x itself: y ← y + c(z − y) + γ(β₁(1−c) − 1)u, before z steps.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Defazio et al. 2024, arXiv:2405.15682, Algorithm 1; decay at y, bias correction of v alone and the defaults
        as in its authors' AdamWScheduleFree.
    """
    (beta1, beta2), gamma = hyper.betas, rate(hyper, group.step)
    share = newest_share(hyper, group.step, group.numbers)
    root = 1 / math.sqrt(1 - beta2**group.step)
    rate_y = gamma * (beta1 * (1 - share) - 1)
    constants = group.constants(beta2, 1 - beta2, root, hyper.eps, hyper.weight_decay, share, rate_y, -gamma)
    return Sums(*_walk(*group.arrays(*state(hyper)), *constants))


def evaluate_(weights: Tensor, state: Mapping[str, Tensor], hyper: ScheduleFreeAdamW) -> None:
    """Make a copy of the session's weights y the weights x to evaluate, in place."""
    weights.copy_(evaluation_weights(weights, state["z"], hyper.betas[0]))


@loop
def _walk(
    y: Any, g: Any, z: Any, v: Any,
    beta2: Any, new2: Any, root: Any, eps: Any, decay: Any, share: Any, rate_y: Any, rate_z: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(y.size):
        old, grad = y[i], widen(g[i])
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        step = _step(old, grad, v[i], root, eps, decay)
        y[i] = moved_y(old, z[i], step, share, rate_y)
        z[i] = fma(rate_z, step, z[i])
        change += square(y[i] - old)
        size += square(y[i])
    return change, size


@element
def _step(y: Any, g: Any, v: Any, root: Any, eps: Any, decay: Any) -> Any:
    return fma(decay, y, g / (np.sqrt(v) * root + eps))
