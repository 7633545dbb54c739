"""Rprop: steps whose size depends on how often the gradient changes its sign, and never on its size."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, Strict, field_validator

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, loop, square, widen

Shrinking = Annotated[float, Field(gt=0, lt=1)]
Growing = Annotated[float, Field(gt=1, le=LARGEST)]
StepSize = Annotated[float, Field(ge=0, le=LARGEST)]


class Rprop(Hyperparameters):
    lr: LearningRate = Field(1e-2, description="Size of the first step, in parameter units; of no effect afterwards.")
    # JSON has no tuples, so a list is one; what lies inside stays strict.
    etas: Annotated[tuple[Shrinking, Growing], Strict(strict=False)] = Field(
        (0.5, 1.2), description="Factors of the step where the gradient's sign has changed, and where it has not."
    )
    step_sizes: Annotated[tuple[StepSize, StepSize], Strict(strict=False)] = Field(
        (1e-6, 50.0), description="Smallest and largest step, in parameter units."
    )

    @field_validator("step_sizes")
    @classmethod
    def _smallest_first(cls, sizes: tuple[float, float]) -> tuple[float, float]:
        if sizes[0] > sizes[1]:
            raise ValueError("the smallest step is larger than the largest; give the smaller one first")
        return sizes


def state(_hyper: Rprop) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("prev", "step_size")


def begin_(part: FlatGroup, hyper: Rprop) -> None:
    """Start every step size at lr."""
    part.state["prev"].zero_()
    part.state["step_size"].fill_(hyper.lr)


def step_(group: FlatGroup, hyper: Rprop) -> Sums:
    """Apply one Rprop step to a flat group, in place.

    With the gradient q and the step size s of the last update:
        s ← s·η₊ where gq > 0, s·η₋ where gq < 0, then held between the smallest and the largest
        g ← 0 where gq < 0: a parameter that has overshot rests for one update
        p ← p − s·sign(g);  q ← g

    Meant for gradients of the whole data set: noise changes signs, too.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter.
    Source: Riedmiller & Braun 1993; without weight backtracking, as in torch.optim.Rprop.
    """
    arrays = group.arrays("prev", "step_size")
    return Sums(*_walk(*arrays, *group.constants(*hyper.etas, *hyper.step_sizes, 0, 1)))


@loop
def _walk(p: Any, g: Any, prev: Any, s: Any, minus: Any, plus: Any, least: Any, most: Any, zero: Any, one: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old, grad = p[i], widen(g[i])
        agreement = grad * prev[i]
        factor = plus if agreement > zero else minus if agreement < zero else one
        s[i] = min(max(s[i] * factor, least), most)
        prev[i] = zero if agreement < zero else grad
        p[i] = old - np.sign(prev[i]) * s[i]
        change += square(p[i] - old)
        size += square(p[i])
    return change, size
