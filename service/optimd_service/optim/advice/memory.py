"""How many bytes an optimizer's state will take, before there is a model to measure."""

from __future__ import annotations

import math
from typing import Any

from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.optimizer import Optimizer

# Where state depends on shapes, the model is taken for square matrices of this size, or for one where it is smaller.
_USUAL_SIDE = 1024


def numbers_a_parameter(optimizer: Optimizer[Any], hyper: Hyperparameters, parameters: int) -> float:
    """Numbers of state for each parameter; exact for element-wise optimizers, else of square matrices."""
    if optimizer.shapes is None:
        return len(optimizer.state(hyper))
    side = min(_USUAL_SIDE, math.isqrt(parameters))
    sizes = map(math.prod, optimizer.shapes(hyper, (side, side)).values())
    return sum(sizes) / side**2
