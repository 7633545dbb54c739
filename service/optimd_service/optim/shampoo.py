"""Shampoo: every dimension of the gradient multiplied by an inverse root of its own second moments."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from optimd_service.optim.adapted import MOST_STEPS, adapted_step_, check_dimensions, numbered
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Beta, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import Shape, refuse_where

# Where Anil et al. 2020 (arXiv:2002.09018) stop in their code: a root of a larger matrix takes minutes.
LONGEST_DIMENSION = 8192


class Shampoo(Hyperparameters):
    lr: LearningRate = 1e-3
    momentum: Beta = Field(0.0, description="Share of the last update in what is preconditioned next.")
    weight_decay: float = Field(
        0.0, ge=0, le=LARGEST, description="λ: λ·p is added to the gradient; with weight_decouple, lr·λ·p leaves p."
    )
    weight_decouple: bool = Field(default=False, description="Let weight decay act on the weights.")
    fixed_decay: bool = Field(default=False, description="With weight_decouple: λ·p leaves p, whatever lr is.")
    preconditioning_compute_steps: int = Field(
        1,
        ge=1,
        le=MOST_STEPS,
        description="Steps between roots; before the first, nothing moves.",
    )
    matrix_eps: Eps = 1e-6


def state(_hyper: Shampoo) -> tuple[str, ...]:
    """Names of the buffers that tensors need, ``pre_cond`` and ``inv_pre_cond`` once for each dimension."""
    return ("momentum_buffer", *numbered("pre_cond", "inv_pre_cond"))


def shapes(_hyper: Shampoo, shape: Shape) -> Mapping[str, Shape]:
    """The last update in the shape of the tensor, and two square matrices for each dimension."""
    if 0 in shape:
        return {}
    squares = {
        f"{name}_{i}": (length, length) for name in ("pre_cond", "inv_pre_cond") for i, length in enumerate(shape)
    }
    return {"momentum_buffer": shape, **squares}


def check(_hyper: Shampoo, tensors: Mapping[str, Shape]) -> None:
    """Refuse what this optimizer cannot step in sensible time. Raises: InvalidField."""
    check_dimensions(tensors)
    detail = (
        f"shampoo takes dimensions up to {LONGEST_DIMENSION}: use soap, which can leave longer ones alone, or adamw."
    )
    refuse_where(lambda shape: max(shape, default=0) > LONGEST_DIMENSION, tensors, detail)


def step_(group: FlatGroup, hyper: Shampoo) -> Sums:
    """Apply one Shampoo step to one tensor of k dimensions, in place.

    With momentum μ, and b the last update (at first the gradient):
        G ← (1−μ)G + μb;  G ← G + λP, unless decoupled
        for each dimension i: Lᵢ ← Lᵢ + GᵢGᵢᵀ, where Gᵢ has dimension i as rows, and Lᵢ begins as ε·1
        b ← G multiplied along each dimension i by Lᵢ^(−1/2k);  P ← P − lr·b
    ``pre_cond`` is L, ``inv_pre_cond`` its inverse root, ``momentum_buffer`` b.

    Cost: two d × d matrices of state for every dimension d, and a singular value decomposition of each, about 20·d³
        operations, every preconditioning_compute_steps.
    Source: Gupta, Koren & Singer 2018, arXiv:1802.09568; arithmetic and defaults of pytorch_optimizer's Shampoo: its
        momentum goes into what is preconditioned, where the paper has none.
    """
    return adapted_step_(group, "Shampoo", dict(hyper), dict)
