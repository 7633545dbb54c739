"""Shampoo: every dimension of the gradient multiplied by an inverse root of its own second moments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Beta, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import MOST_STEPS, Shape, numbered, refuse_many_dimensions, refuse_where, stepped_

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
    refuse_many_dimensions(tensors)
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
    Source: Gupta, Koren & Singer 2018, arXiv:1802.09568; momentum, decay and defaults as in pytorch_optimizer's
        Shampoo: its momentum goes into what is preconditioned, where the paper has none.
    """
    state, order = group.state, max(1, len(group.shape or ()))
    rooted = group.step % hyper.preconditioning_compute_steps == 0

    def update_(params: Tensor, grads: Tensor) -> None:
        grads = _decayed(grads if group.fresh else grads.lerp(state["momentum_buffer"], hyper.momentum), params, hyper)
        moved = grads
        for i, length in enumerate(grads.shape):
            moments, root = state[f"pre_cond_{i}"], state[f"inv_pre_cond_{i}"]
            if group.fresh:
                moments.zero_().fill_diagonal_(hyper.matrix_eps)
                root.zero_()
            unfolded = grads.movedim(i, 0).reshape(length, -1)
            moments.addmm_(unfolded, unfolded.T)
            if rooted:
                root.copy_(_inverse_root(moments, 2 * order, hyper.matrix_eps))
            moved = moved.transpose(0, i)
            turned = moved.reshape(length, -1)
            moved = (turned.T @ root).view(grads.shape) if i == order - 1 else (root @ turned).view(moved.shape)
        state["momentum_buffer"].copy_(moved)
        params.sub_(moved, alpha=hyper.lr)

    return stepped_(group, update_)


def _decayed(grads: Tensor, params: Tensor, hyper: Shampoo) -> Tensor:
    """The gradient with its part of weight decay; decoupled, the weights take theirs in place."""
    if not hyper.weight_decouple:
        return grads.add(params, alpha=hyper.weight_decay)
    params.mul_(1 - hyper.weight_decay * (1.0 if hyper.fixed_decay else hyper.lr))
    return grads


def _inverse_root(moments: Tensor, power: int, eps: float) -> Tensor:
    """moments^(−1/power), of a symmetric matrix.

    None of its eigenvalues is below ε, which it began with; where rounding leaves 0, ε holds. A matrix that is
    not finite, as of weights that diverged, has no root but NaN: an error would leave the update half done.
    """
    if not moments.isfinite().all():
        return torch.full_like(moments, math.nan)
    left, values, right = torch.linalg.svd(moments, full_matrices=False)
    root: Tensor = (left * values.where(values > 0, eps).pow_(-1 / power)) @ right
    return root
