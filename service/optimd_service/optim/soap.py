"""SOAP: Adam in the basis in which Shampoo's preconditioners are diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from optimd_service.optim.adapted import adapted_step_, library
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import (
    STRUCTURAL,
    Beta,
    Betas,
    DecoupledDecay,
    Eps,
    Hyperparameters,
    LearningRate,
)
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import MOST_STEPS, Shape, numbered, refuse_many_dimensions


class SOAP(Hyperparameters):
    lr: LearningRate = 3e-3
    betas: Betas = Field((0.95, 0.95), description="Decay per step of the means of g and of the turned g².")
    shampoo_beta: Beta | None = Field(None, description="Decay per step of the preconditioners; None: betas[1].")
    weight_decay: DecoupledDecay = 1e-2
    precondition_frequency: int = Field(10, ge=1, le=MOST_STEPS, description="Steps between changes of basis.")
    max_precondition_dim: int = Field(
        10_000, ge=1, le=10_000, description="Longer dimensions keep their basis.", json_schema_extra=STRUCTURAL
    )
    precondition_1d: bool = Field(
        default=False, description="Turn vectors as well; else they get plain Adam.", json_schema_extra=STRUCTURAL
    )
    correct_bias: bool = Field(default=True, description="Correct the means as Adam does.")
    normalize_gradient: bool = Field(default=False, description="Scale every update to a root mean square of 1.")
    eps: Eps = 1e-8


def state(_hyper: SOAP) -> tuple[str, ...]:
    """Names of the buffers that tensors need, ``GG`` and ``Q`` once for each dimension that is turned."""
    return ("exp_avg", "exp_avg_sq", *numbered("GG", "Q"))


def shapes(hyper: SOAP, shape: Shape) -> Mapping[str, Shape]:
    """Adam's means in the shape of the tensor, and two square matrices for each dimension that is turned."""
    if 0 in shape:
        return {}
    turned = () if len(shape) == 1 and not hyper.precondition_1d else shape
    squares = {
        f"{name}_{i}": (length, length)
        for name in ("GG", "Q")
        for i, length in enumerate(turned)
        if length <= hyper.max_precondition_dim
    }
    return {"exp_avg": shape, "exp_avg_sq": shape, **squares}


def check(_hyper: SOAP, tensors: Mapping[str, Shape]) -> None:
    """Refuse a server without the library, and what this optimizer cannot step. Raises: InvalidField."""
    library()
    refuse_many_dimensions(tensors)


def step_(group: FlatGroup, hyper: SOAP) -> Sums:
    """Apply one SOAP step to one tensor, in place.

    For a matrix, with t = step − 1 and products of matrices:
        L ← βL + (1−β)GGᵀ;  R ← βR + (1−β)GᵀG      (``GG``; after the weights have moved)
        m ← β₁m + (1−β₁)G;  v ← β₂v + (1−β₂)(QₗᵀGQᵣ)²
        P ← P − lr · √(1−β₂ᵗ)/(1−β₁ᵗ) · Qₗ[QₗᵀmQᵣ / (√v + ε)]Qᵣᵀ;  P ← P·(1 − lr·λ)
    The bases Q are eigenvectors of L and R, improved by one power iteration and QR every precondition_frequency steps.
    The first step only prepares them: no weight moves.

    Cost: two d × d matrices of state for every dimension d ≤ max_precondition_dim, and about 8·d operations a
        parameter and dimension beside; changes of basis cost d³ several times over.
    Source: Vyas et al. 2024, arXiv:2409.11321; arithmetic and defaults of pytorch_optimizer's SOAP, without
        merge_dims: ε is added before bias correction, and momentum is kept in the weights' own basis.
    """

    def arrange(buffers: Mapping[str, Tensor]) -> dict[str, Any]:
        dimensions = range(len(group.shape or ()))
        # A dimension that is not turned has an empty list where others have a matrix.
        squares: dict[str, Any] = {name: [buffers.get(f"{name}_{i}", []) for i in dimensions] for name in ("GG", "Q")}
        return {
            "exp_avg": buffers["exp_avg"],
            "exp_avg_sq": buffers["exp_avg_sq"],
            "precondition_frequency": hyper.precondition_frequency,
            "shampoo_beta": hyper.betas[1] if hyper.shampoo_beta is None else hyper.shampoo_beta,
            **squares,
        }

    return adapted_step_(group, "SOAP", dict(hyper), arrange)
