"""The p-norm of a flat tensor of any dtype that gradients come in, for any p ≥ 1."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from optimd_service.optim.blocks import Each, each_block
from optimd_service.optim.norm import norm

# Two float64 copies of a block fit into a core's cache.
POWER_BLOCK = 2**16


def p_norm(flat: Tensor, p: float, each: Each = map) -> float:
    """``(Σ|x|ᵖ)^(1/p)``, or the largest ``|x|`` for p = ∞; 0 of no elements. No power leaves the range of float64.

    Args:
      flat: shape [n], contiguous, float32, float64 or bfloat16, every element finite; read only.
      p: ≥ 1, perhaps ``math.inf``.
      each: as ``map``, perhaps side by side.

    Cost: one pass over memory. A p other than 2 and ∞ takes a power of each element, which costs far more; two
        float64 copies of a part are made for it, however long ``flat`` is.
    """
    if p == math.inf:
        return max(each_block(_largest, each, flat), default=0.0)
    if p == 2:
        return norm(flat, each)
    parts = each_block(lambda block: _block_p_norm(block, p), each, flat)
    return _joined(parts, p)


def _largest(block: Tensor) -> float:
    return max(abs(bound.item()) for bound in torch.aminmax(block))


def _block_p_norm(block: Tensor, p: float) -> float:
    starts = range(0, block.numel(), POWER_BLOCK)
    return _joined((_scaled(block[at : at + POWER_BLOCK], p) for at in starts), p)


def _joined(norms: Iterable[float], p: float) -> float:
    # The p-norm of parts' p-norms is that of the whole.
    return _scaled(torch.tensor([0.0, *norms], dtype=torch.float64), p)


def _scaled(part: Tensor, p: float) -> float:
    largest = _largest(part)
    if largest == 0:
        return 0.0
    return largest * float(torch.linalg.vector_norm(part.to(torch.float64, copy=True).div_(largest), p))
