"""The 2-norm of a long flat tensor, as exactly as a receipt promises it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# A dot product of this many float32 squares is right to 1e-7; torch's vector_norm of 25 million is off by 1e-3.
NORM_BLOCK = 2**18
# What one worker is given at a time.
CHUNK = 2**22
Each = Callable[[Callable[[int], float], Iterable[int]], Iterable[float]]
# A norm at or below this may have lost squares that are too small for float32.
SMALLEST_SAFE = 1e-15


def norm(flat: Tensor, each: Each = map) -> float:
    """The 2-norm of all elements; finite exactly if every element is and the norm itself is a float64.

    Where squares leave the dtype's range, they are taken again with the largest element scaled to 1, so 1e30 and
    1e-30 have norms like any other. Allocates at most one block, however long ``flat`` is.

    Args:
      flat: shape [n], contiguous, float32 or float64; n may be 0. Read only.
      each: as ``map``, perhaps side by side.

    Cost: one pass over memory; three where squares leave the range.
    """
    length = flat.numel()
    if 0 < length <= NORM_BLOCK:
        return _block_norm(flat)
    if length > CHUNK:
        return math.hypot(*each(lambda at: norm(flat[at : at + CHUNK]), range(0, length, CHUNK)))
    starts = range(0, length, NORM_BLOCK)
    return math.hypot(*(_block_norm(flat[at : at + NORM_BLOCK]) for at in starts))


def _block_norm(block: Tensor) -> float:
    fast = math.sqrt(torch.dot(block, block).item())
    return fast if SMALLEST_SAFE < fast < math.inf else _scaled_norm(block)


def _scaled_norm(block: Tensor) -> float:
    largest = max(abs(bound.item()) for bound in torch.aminmax(block))
    if largest == 0 or not math.isfinite(largest):
        return largest
    scaled = block / largest
    return largest * math.sqrt(torch.dot(scaled, scaled).item())
