"""Muon: momentum of a matrix, turned into the nearest matrix whose rows or columns are orthonormal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, Strict
from torch import Tensor
from torch.optim._muon import muon  # its functional form, which has no public path; torch is held to one release

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Beta, DecoupledDecay, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import Shape, refuse_where, stepped_

MOST_STEPS = 99
Coefficient = Annotated[float, Field(ge=-100, le=100)]


# Rounding to bfloat16 leaves the largest singular value, at most 1, a little above it.
_SINGULAR_VALUES = np.linspace(0, 1.05, 1024)


def _staying_small(coefficients: tuple[float, float, float]) -> tuple[float, float, float]:
    """Refuse an iteration that lets a singular value grow: it moves nothing else, so scalars tell what matrices do."""
    a, b, c = coefficients
    values = _SINGULAR_VALUES
    for _ in range(MOST_STEPS):
        values = np.clip(a * values + b * values**3 + c * values**5, -10, 10)
    if np.abs(values).max() >= 10:
        raise ValueError("with these coefficients singular values between 0 and 1 grow without end")
    return coefficients


class Muon(Hyperparameters):
    lr: LearningRate = 1e-3
    weight_decay: DecoupledDecay = 0.1
    momentum: Beta = Field(0.95, description="μ: decay per step of the mean of g.")
    nesterov: bool = Field(default=True, description="Look ahead along momentum.")
    ns_coefficients: Annotated[
        tuple[Coefficient, Coefficient, Coefficient], Strict(strict=False), AfterValidator(_staying_small)
    ] = Field((3.4445, -4.7750, 2.0315), description="a, b, c of the Newton–Schulz iteration.")
    eps: Eps = 1e-7
    ns_steps: int = Field(5, ge=1, le=MOST_STEPS, description="Newton–Schulz iterations.")
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = Field(
        None, description="How lr follows the shape [r, c]: × √max(1, r/c) (original, None), or × 0.2·√max(r, c)."
    )


def state(_hyper: Muon) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("momentum_buffer",)


def shapes(hyper: Muon, shape: Shape) -> Mapping[str, Shape]:
    """Momentum has the shape of the matrix."""
    return dict.fromkeys(state(hyper), shape)


def check(_hyper: Muon, tensors: Mapping[str, Shape]) -> None:
    """Refuse tensors that are no matrices. Raises: InvalidField, naming the first."""
    refuse_where(
        lambda shape: len(shape) != 2,
        tensors,
        "muon takes matrices only: create a second session, with adamw for example, for everything that is not 2-D.",
    )


def step_(group: FlatGroup, hyper: Muon) -> Sums:
    """Apply one Muon step to one matrix, in place.

    With momentum μ:
        b ← μb + (1−μ)g;  u = (1−μ)g + μb if nesterov, else b
        X = u/‖u‖, and ns_steps times: X ← aX + b'(XXᵀ)X + c(XXᵀ)²X    (of uᵀ, if u has more rows than columns)
        p ← p·(1 − lr·λ) − lr·adjust(shape) · X
    where a, b', c are ns_coefficients. X is bfloat16, whatever the weights are: its three digits are enough for a
    direction, and it is what torch does.

    Cost: ns_steps · (4·r²·c + 2·r³) operations for a matrix of r ≤ c; reads and writes 12 bytes a parameter beside.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; match_rms_adamw is Liu et al. 2025,
        arXiv:2502.16982. Computed by torch's own function, so that the bits are torch.optim.Muon's.
    """

    def update_(params: Tensor, grads: Tensor) -> None:
        muon([params], [grads], [group.state["momentum_buffer"]], has_complex=False, **dict(hyper))

    return stepped_(group, update_)
