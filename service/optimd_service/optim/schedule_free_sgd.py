"""Schedule-free SGD: SGD whose average of weights takes the place of a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, fma, loop, square, widen
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


class ScheduleFreeSGD(Hyperparameters):
    lr: LearningRate = 1.0
    momentum: Interpolation = Field(0.9, description="β: share of the mean x in the weights y that gradients are of.")
    weight_decay: L2Decay = 0.0
    warmup_steps: WarmupSteps = 0
    r: StepPower = 0.0
    weight_lr_power: RatePower = 2.0


def state(_hyper: ScheduleFreeSGD) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("z",)


def step_(group: FlatGroup, hyper: ScheduleFreeSGD) -> Sums:
    """Apply one schedule-free SGD step to a flat group, in place.

    The weights are y; with t = step, γ = lr·min(1, t/warmup_steps), w = tʳ·(largest γ)^weight_lr_power, c = w/Σw:
        g ← g + λy
        z ← z − γg;  x ← (1−c)x + c·z;  y ← (1−β)z + βx
    without x itself: y ← y + c(z − y) + γ(β(1−c) − 1)g, before z steps.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 12 and writes 8 bytes a float32 parameter.
    Source: Defazio et al. 2024, arXiv:2405.15682; decay at y, the weights of steps and the defaults as in its authors'
        SGDScheduleFree.
    """
    gamma = rate(hyper, group.step)
    share = newest_share(hyper, group.step, group.numbers)
    constants = group.constants(hyper.weight_decay, share, gamma * (hyper.momentum * (1 - share) - 1), -gamma)
    return Sums(*_walk(*group.arrays(*state(hyper)), *constants))


def evaluate_(weights: Tensor, state: Mapping[str, Tensor], hyper: ScheduleFreeSGD) -> None:
    """Make a copy of the session's weights y the weights x to evaluate, in place."""
    weights.copy_(evaluation_weights(weights, state["z"], hyper.momentum))


@loop
def _walk(y: Any, g: Any, z: Any, l2: Any, share: Any, rate_y: Any, rate_z: Any) -> Any:
    change = size = 0.0
    for i in range(y.size):
        old = y[i]
        step = fma(l2, old, widen(g[i]))
        y[i] = moved_y(old, z[i], step, share, rate_y)
        z[i] = fma(rate_z, step, z[i])
        change += square(y[i] - old)
        size += square(y[i])
    return change, size
