"""Adaptive gradient clipping: no row's gradient may be long beside the row itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from optimd_service.optim.blocks import Each, array
from optimd_service.optim.kernel import loop, narrow, square, widen
from optimd_service.optim.units import each_unit, rows
from optimd_service.types import Layout


def clip_rows_(grads: Tensor, params: Tensor, layout: Layout, agc: float, eps: float, each: Each = map) -> float:
    """Shorten every row's gradient to ``agc`` times the row's own length, in place.

    With W a row of a tensor of two dimensions or more (a slice along its first), or a whole tensor of fewer:
        G ← G · min(1, agc · max(‖W‖₂, ε) / ‖G‖₂)
    Rows that are short enough are not written.

    Args:
      grads: shape [n], float32, float64 or bfloat16, finite, n ≤ layout.numel; written. A float64 row whose squares
        overflow (elements beyond 1e154) counts as infinitely long, and becomes 0.
      params: shape [≥ n], float32 or float64; read only.
      agc: > 0, no unit; the paper's λ.   eps: > 0, in units of the weights; without it a row at 0 could never leave it.
      each: as ``map``, perhaps side by side.

    Returns: the smallest factor of any row, 1 where nothing was clipped.
    Cost: reads weights and gradients once, and gradients of clipped rows once more, from cache.
    Source: Brock et al. 2021, arXiv:2102.06171. The paper leaves a network's last linear layer out; here, where nothing
        is known of layers, it is clipped like any other.
    """
    p, g = array(params), array(grads)

    def clip_(start: int, stop: int, width: int) -> float:
        return float(_clip_rows(p[start:stop], g[start:stop], width, agc, eps))

    return min(each_unit(lambda part: clip_(*part), rows(layout, len(g), vectors=True), each), default=1.0)


@loop
def _clip_rows(p: Any, g: Any, width: int, agc: float, eps: float) -> float:
    smallest = 1.0
    for start in range(0, g.size, width):
        # A slice, counted from 0: an index that might be negative would keep the loops from vector instructions.
        w, row = p[start : start + width], g[start : start + width]
        weight = grad = 0.0
        for i in range(row.size):
            weight += square(w[i])
            grad += square(widen(row[i]))
        allowed, length = agc * max(np.sqrt(weight), eps), np.sqrt(grad)
        if length > allowed:
            factor = allowed / length
            smallest = min(smallest, factor)
            for i in range(row.size):
                row[i] = narrow(widen(row[i]) * factor, row[i])
    return smallest
