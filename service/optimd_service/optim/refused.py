"""Optimizers that a gradient is not enough for, and why; whoever asks for one is told instead of merely refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_LINE_SEARCH = "evaluates the loss several times in a step, and only the trainer has the model; adamw takes gradients"
_TWO_GRADIENTS = "needs a second gradient, at weights it moves itself; take that where the model is, and push it to sgd"
_CURVATURE = (
    "needs products with the Hessian, which only the trainer can compute; soap and shampoo learn from gradients alone"
)

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "lbfgs": _LINE_SEARCH,
        "l-bfgs": _LINE_SEARCH,
        "sam": _TWO_GRADIENTS,
        "asam": _TWO_GRADIENTS,
        "gsam": _TWO_GRADIENTS,
        "adahessian": _CURVATURE,
        "sophia": _CURVATURE,
        "sophiah": _CURVATURE,
        "sophia-h": _CURVATURE,
    }
)
"""Name in lower case → what the optimizer asks for, and what to take in its place; a sentence without its subject."""
