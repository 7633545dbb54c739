"""Adam: a step of its own size for every parameter, from running means of the gradient and of its square."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import STRUCTURAL, Betas, Eps, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, element, fma, loop, mean, mean_of_squares, square, widen


class Adam(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-8
    weight_decay: L2Decay = 0.0
    amsgrad: bool = Field(
        default=False, description="Divide by the largest mean of g² so far.", json_schema_extra=STRUCTURAL
    )


def state(hyper: Adam) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if hyper.amsgrad else ("exp_avg", "exp_avg_sq")


def step_(group: FlatGroup, hyper: Adam) -> Sums:
    """Apply one Adam step to a flat group, in place.

    With t = step:
        g ← g + λp
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
    AMSGrad keeps v̂ ← max(v̂, v) and divides by v̂ in place of v.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter; with AMSGrad 20 and 16.
    Source: Kingma & Ba 2015, arXiv:1412.6980; Reddi et al. 2018, arXiv:1904.09237. The maximum is taken before bias
        correction, as in torch.optim.Adam; the paper has no correction at all.
    """
    return adam_(group, state(hyper), hyper, l2_decay=hyper.weight_decay, kept=1.0)


def adam_(group: FlatGroup, buffers: tuple[str, ...], hyper: Any, *, l2_decay: float, kept: float) -> Sums:
    """Adam, and what is told from it by its weight decay alone.

    Args:
      hyper: has lr, betas and eps.
      l2_decay: λ of the g ← g + λp that comes first.   kept: what p is multiplied by before it moves.
    """
    (beta1, beta2), step = hyper.betas, group.step
    p, g, m, v, *largest = group.arrays(*buffers)
    rate, root = -hyper.lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    constants = group.constants(l2_decay, kept, 1 - beta1, beta2, 1 - beta2, rate, root, hyper.eps)
    return Sums(*walk(p, g, m, v, largest[0] if largest else None, *constants))


@loop
def walk(
    p: Any, g: Any, m: Any, v: Any, largest: Any,
    l2: Any, kept: Any, new1: Any, beta2: Any, new2: Any, rate: Any, root: Any, eps: Any,
) -> Any:  # fmt: skip
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        grad = fma(l2, old, widen(g[i]))
        m[i] = mean(m[i], grad, new1)
        v[i] = mean_of_squares(v[i], grad, beta2, new2)
        if largest is None:
            most = v[i]
        else:
            most = largest[i] = max(largest[i], v[i])
        p[i] = _moved(old * kept, m[i], most, rate, root, eps)
        change += square(p[i] - old)
        size += square(p[i])
    return change, size


# In the order of operations of torch's fused kernel, so that the bits are its own where its vectors reach.
@element
def _moved(p: Any, m: Any, v: Any, rate: Any, root: Any, eps: Any) -> Any:
    return p + rate * m / (np.sqrt(v) / root + eps)
