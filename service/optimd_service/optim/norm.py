"""The 2-norm of a long flat tensor, as exactly as a receipt promises it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from optimd_service.optim.blocks import Each, array, each_block
from optimd_service.optim.kernel import loop, square, widen

# A float64 norm at or below this may have lost squares that are too small for float64.
SMALLEST_SAFE = 1e-140


def norm(flat: Tensor, each: Each = map) -> float:
    """The 2-norm of all elements; finite exactly if every element is and the norm itself is a float64.

    Squares are added in float64, in which no square of a float32 or a bfloat16 is lost. Where squares of float64
    elements leave the range, they are taken again with the largest element scaled to 1, so 1e300 and 1e-300 have norms
    like any other.

    Args:
      flat: shape [n], contiguous, float32, float64 or bfloat16; n may be 0. Read only.
      each: as ``map``, perhaps side by side; the result does not depend on it.

    Cost: one pass over memory; three, and a copy of a block, where float64 squares leave the range.
    """
    return math.hypot(*each_block(block_norm, each, flat))


def block_norm(block: Tensor) -> float:
    """The norm of one block; that of several is the 2-norm of theirs, in order."""
    fast = _unscaled_norm(block)
    if block.dtype is not torch.float64 or SMALLEST_SAFE < fast < math.inf:
        return fast
    return _scaled_norm(block)


def _unscaled_norm(block: Tensor) -> float:
    if block.is_cpu:
        return math.sqrt(_sum_of_squares(array(block)))
    return float(torch.linalg.vector_norm(block, dtype=torch.float64))


def _scaled_norm(block: Tensor) -> float:
    if not block.numel():
        return 0.0
    largest = max(abs(bound.item()) for bound in torch.aminmax(block))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * _unscaled_norm(block / largest)


@loop
def _sum_of_squares(flat: Any) -> Any:
    total = 0.0
    for i in range(flat.size):
        total += square(widen(flat[i]))
    return total
