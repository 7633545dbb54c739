"""Gradient centralisation: every row of a gradient has the mean 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optimd_service.optim.blocks import Each, array
from optimd_service.optim.kernel import loop, narrow, widen
from optimd_service.optim.units import each_unit, rows
from optimd_service.types import Layout


def centralise_(grads: Tensor, layout: Layout, each: Each = map) -> None:
    """Take from each gradient of two dimensions or more its mean over all but the first, in place.

    With g a row of such a gradient, of k elements:
        g ← g − (Σ gᵢ)/k
    Vectors and scalars, such as biases, are left as they are. A row of one element is its own mean, and becomes 0.

    Args:
      grads: shape [n], n ≤ layout.numel, float32, float64 or bfloat16; written. Tensors that end behind n have none.
      each: as ``map``, perhaps side by side.

    Cost: one read and one write; rows are read again from cache. The mean is taken in float64.
    Source: Yong et al. 2020, arXiv:2004.01461; every tensor of two dimensions or more, as in the authors' code.
    """
    g = array(grads)

    def centre_(start: int, stop: int, width: int) -> None:
        _centre_rows(g[start:stop], width)

    each_unit(lambda part: centre_(*part), rows(layout, len(g), vectors=False), each)


@loop
def _centre_rows(g: Any, width: int) -> None:
    for start in range(0, g.size, width):
        # A slice, counted from 0: an index that might be negative would keep the loops from vector instructions.
        row = g[start : start + width]
        total = 0.0
        for i in range(row.size):
            total += widen(row[i])
        mean = total / width
        for i in range(row.size):
            row[i] = narrow(widen(row[i]) - mean, row[i])
