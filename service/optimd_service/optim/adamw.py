"""AdamW: Adam whose weight decay acts on the weights and leaves the moments alone."""

from __future__ import annotations

from pydantic import Field

from optimd_service.optim.adam import adam_
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import STRUCTURAL, Betas, DecoupledDecay, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums


class AdamW(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g².")
    eps: Eps = 1e-8
    weight_decay: DecoupledDecay = 1e-2
    amsgrad: bool = Field(
        default=False, description="Divide by the largest mean of g² so far.", json_schema_extra=STRUCTURAL
    )


def state(hyper: AdamW) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if hyper.amsgrad else ("exp_avg", "exp_avg_sq")


def step_(group: FlatGroup, hyper: AdamW) -> Sums:
    """Apply one AdamW step to a flat group, in place.

    With t = step:
        p ← p·(1 − lr·λ);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
    AMSGrad keeps v̂ ← max(v̂, v) and divides by v̂ in place of v.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 16 and writes 12 bytes a float32 parameter; with AMSGrad 20 and 16.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; lr multiplies λ, as in torch.optim.AdamW.
    """
    return adam_(group, state(hyper), hyper, l2_decay=0.0, kept=1 - hyper.lr * hyper.weight_decay)
