"""Adafactor: Adam's sense of scale from row and column means alone; next to no state for a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, Strict
from torch import Tensor
from torch.optim._adafactor import adafactor  # its functional form has no public path; torch is held to one release

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, DecoupledDecay, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import Shape, stepped_


def _square_not_zero_in_float32(eps: float) -> float:
    if eps * eps < torch.finfo(torch.float32).tiny:
        raise ValueError("eps[0] is so small that its square is 0 in float32")
    return eps


GradEps = Annotated[float, Field(gt=0, le=LARGEST), AfterValidator(_square_not_zero_in_float32)]
WeightEps = Annotated[float, Field(ge=0, le=LARGEST)]


class Adafactor(Hyperparameters):
    lr: LearningRate = 1e-2
    beta2_decay: float = Field(-0.8, ge=-LARGEST, le=0, description="c: the mean of g² decays by 1 − tᶜ at step t.")
    eps: Annotated[tuple[GradEps | None, WeightEps], Strict(strict=False)] = Field(
        (None, 1e-3),
        description="ε₁, the least root mean square of a gradient (None: the dtype's own ε), and ε₂, that of weights.",
    )
    d: float = Field(1.0, ge=1, le=LARGEST, description="Longer updates are clipped to this root mean square.")
    weight_decay: DecoupledDecay = 0.0


def state(_hyper: Adafactor) -> tuple[str, ...]:
    """Names of the buffers that tensors need: the first two if they have rows, else the third."""
    return ("row_var", "col_var", "variance")


def shapes(_hyper: Adafactor, shape: Shape) -> Mapping[str, Shape]:
    """One mean for a row and one for a column of the last two dimensions; a vector has one for every element."""
    if len(shape) < 2:
        return {"variance": shape}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


def step_(group: FlatGroup, hyper: Adafactor) -> Sums:
    """Apply one Adafactor step to one tensor, in place.

    With t = step, c = beta2_decay, and rms the root mean square over the tensor:
        R ← (1−tᶜ)R + tᶜ·mean(g², of a row);  C ← (1−tᶜ)C + tᶜ·mean(g², of a column)
        v = RC / max(mean(R), ε₁)                   (a vector: v ← (1−tᶜ)v + tᶜ·g²)
        u = g / √max(v, ε₁²);  α = max(ε₂, rms(p)) · min(lr, 1/√t)
        p ← p·(1 − lr·λ) − α · u / max(1, rms(u)/d)

    Cost: one copy of the tensor for v and one for u; state of r + c numbers for a matrix of r × c.
    Source: Shazeer & Stern 2018, arXiv:1804.04235; defaults and departures of torch.optim.Adafactor: min(lr, 1/√t)
        has lr where the paper has 10⁻², and ε₁ bounds means that the paper adds it to. Computed by torch's own
        function, so that the bits are its own.
    """
    eps1, eps2 = hyper.eps
    rows, columns, whole = ([group.state.get(name)] for name in state(hyper))

    def update_(params: Tensor, grads: Tensor) -> None:
        adafactor(
            [params],
            [grads],
            rows,
            columns,
            whole,
            [torch.tensor(float(group.step - 1), dtype=torch.float64)],
            foreach=False,
            d=hyper.d,
            lr=hyper.lr,
            beta2_decay=hyper.beta2_decay,
            weight_decay=hyper.weight_decay,
            eps1=torch.finfo(params.dtype).eps if eps1 is None else eps1,
            eps2=eps2,
            maximize=False,
        )

    return stepped_(group, update_)
