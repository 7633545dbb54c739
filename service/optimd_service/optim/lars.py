"""LARS: SGD with momentum whose rate follows, tensor by tensor, how long the weights are beside their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LARGEST, Hyperparameters, L2Decay, LearningRate, Momentum
from optimd_service.optim.kernel import Sums, fma, loop, square, widen
from optimd_service.optim.tensorwise import Shape, flattened


class LARS(Hyperparameters):
    lr: LearningRate = 1.0
    momentum: Momentum = 0.9
    weight_decay: L2Decay = 0.0
    trust_coefficient: float = Field(
        1e-3, gt=0, le=LARGEST, description="η: with lr 1 and no momentum, a tensor moves by η times its own norm."
    )


def state(hyper: LARS) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("momentum_buffer",) if hyper.momentum else ()


def shapes(hyper: LARS, shape: Shape) -> Mapping[str, Shape]:
    """Momentum has the shape of the tensor."""
    return dict.fromkeys(state(hyper), shape)


def step_(group: FlatGroup, hyper: LARS) -> Sums:
    """Apply one LARS step to one tensor, in place.

    With momentum μ, trust coefficient η and 2-norms over the tensor:
        r = lr · η‖p‖ / (‖g‖ + λ‖p‖), or lr if ‖p‖ or ‖g‖ is 0
        b ← μb + r · (g + λp);  p ← p − b

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 20 and writes 8 bytes a float32 parameter; without momentum 16 and 4.
    Source: You, Gitman & Ginsburg 2017, arXiv:1708.03888, Algorithm 1: the rate goes into the momentum when it is
        built. Libraries that wrap torch.optim.SGD multiply lr when it is used; the same for as long as lr is constant.
        The paper trains with η = 0.001 and μ = 0.9, and gives no rate for all tasks.
    """
    p, g, *momentum = flattened(group).arrays(*state(hyper))
    constants = group.constants(hyper.momentum, _rate(p, g, hyper), hyper.weight_decay)
    return Sums(*_walk(p, g, momentum[0] if momentum else None, *constants))


def _rate(p: Any, g: Any, hyper: LARS) -> float:
    weights, grads = map(math.sqrt, _squares(p, g))
    if not (weights and grads):
        return hyper.lr
    return hyper.lr * hyper.trust_coefficient * weights / (grads + hyper.weight_decay * weights)


@loop
def _squares(p: Any, g: Any) -> Any:
    weights = grads = 0.0
    for i in range(p.size):
        weights += square(p[i])
        grads += square(widen(g[i]))
    return weights, grads


@loop
def _walk(p: Any, g: Any, b: Any, momentum: Any, rate: Any, decay: Any) -> Any:
    change = size = 0.0
    for i in range(p.size):
        old = p[i]
        move = rate * fma(decay, old, widen(g[i]))
        if b is not None:
            move = b[i] = fma(momentum, b[i], move)
        p[i] = old - move
        change += square(p[i] - old)
        size += square(p[i])
    return change, size
