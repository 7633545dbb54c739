"""ASGD: SGD whose rate decays, with an average of the weights kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.hyperparameters import LARGEST, Hyperparameters, L2Decay, LearningRate
from optimd_service.optim.kernel import Sums, fma, loop, square, widen

NUMBERS: Mapping[str, float] = MappingProxyType({"eta": 0.0, "mu": 0.0, "eta_now": 0.0, "mu_now": 0.0})
"""As they are before the first update: a mu of 0 stands for an eta of lr and a mu of 1."""


class ASGD(Hyperparameters):
    lr: LearningRate = 1e-2
    lambd: float = Field(1e-4, ge=0, le=LARGEST, description="λ: how fast the rate decays; λη·p is also taken from p.")
    alpha: float = Field(0.75, ge=0, le=4, description="Power by which the rate decays.")
    t0: float = Field(1e6, ge=0, le=LARGEST, description="Step at which averaging begins.")
    weight_decay: L2Decay = 0.0


def state(_hyper: ASGD) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("ax",)


def advance(hyper: ASGD, step: int, numbers: Numbers) -> Numbers:
    """``eta`` and ``mu`` of the next update, as torch.optim.ASGD keeps them, and ``eta_now`` and ``mu_now`` of this.

    η and μ are set one update ahead, so a changed lr moves the weights one update later; the first takes lr and 1.
    """
    now = (numbers["eta"], numbers["mu"]) if numbers["mu"] else (hyper.lr, 1.0)
    eta = hyper.lr / (1 + hyper.lambd * hyper.lr * step) ** hyper.alpha
    return {"eta_now": now[0], "mu_now": now[1], "eta": eta, "mu": 1 / max(1.0, step - hyper.t0)}


def step_(group: FlatGroup, hyper: ASGD) -> Sums:
    """Apply one ASGD step to a flat group, in place.

    With η and μ as the update before left them, at first lr and 1:
        g ← g + weight_decay·p;  p ← p·(1 − λη) − ηg;  ax ← ax + μ(p − ax)
    then, with t = step, for the next update:
        η ← lr/(1 + λ·lr·t)^alpha;  μ ← 1/max(1, t − t0)

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 12 and writes 8 bytes a float32 parameter.
    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; torch.optim.ASGD.
    """
    eta, mu = group.numbers["eta_now"], group.numbers["mu_now"]
    constants = group.constants(hyper.weight_decay, 1 - hyper.lambd * eta, -eta)
    share = [None] if mu == 1 else group.constants(mu)
    arguments: list[Any] = [*group.arrays(*state(hyper)), *constants, *share]
    return Sums(*_walk(*arguments))


def evaluate_(weights: Tensor, state: Mapping[str, Tensor], _hyper: ASGD) -> None:
    """Put the average of the weights in place of a copy of them."""
    weights.copy_(state["ax"])


@loop
def _walk(p: Any, g: Any, ax: Any, l2: Any, kept: Any, rate: Any, share: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        p[i] = fma(rate, fma(l2, old, widen(g[i])), old * kept)
        if share is None:
            ax[i] = p[i]
        else:
            ax[i] = fma(share, p[i] - ax[i], ax[i])
        change += square(p[i] - old)
        size += square(p[i])
    return change, size
