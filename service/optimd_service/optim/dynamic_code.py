"""Eight bits for a number between −1 and 1, with steps that are fine where numbers are small: dynamic quantisation.

A byte's leading zeros count decades, and the bits that remain divide the decade evenly. Decade e, from 10⁻ᵉ⁻¹ to
10⁻ᵉ, has 2^(6−e) equal parts for e = 0 … 6, each standing for its middle; beside them stand 0 and 1, and for all but 1
the negative. Where nothing is negative the bit of the sign divides every decade once more. So with a sign

    e              0        1        2        3        4        5        6
    parts          64       32       16       8        4        2        1
    one part       0.014    0.028    0.056    0.11     0.23     0.45     0.9     × 10⁻ᵉ

is the distance between neighbours from 0.1 × 10⁻ᵉ to 10⁻ᵉ, and half of it the largest error of the nearer one; without
a sign, half of either. Where two decades meet, neighbours are half a part of each apart.

Levels are numbered by size, zero first, the negative ones as in two's complement: byte 256 − k stands for −levels[k].

From a number to its level and back goes without a table, which a processor's vectors could not look up: the parts grow
with the numbers, so that the polyline through the levels is everywhere the lowest of its own lines. The last alone, to
1, is half as long as the one before it.

Source: Dettmers et al. 2022, arXiv:2110.02861; Dettmers 2016, arXiv:1511.04561. The bytes' numbering
    is our own, so that zeroed memory stands for zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimd_service.optim.flat_group import Array

DECADES = 7


class Lines(NamedTuple):
    """Straight lines ``slopes·x + offsets``; shape [count] each, float32."""

    slopes: NDArray[np.float32]
    offsets: NDArray[np.float32]


class DynamicCode(NamedTuple):
    """A code of 256 levels, with what the loops need to go from one to the other.

    Attributes:
      levels: shape [256], float32; what each byte stands for.
      values: levels[k] is the highest of these lines at k, but at least 0 and at most 1; rounded once.
      places: where a ratio r ≥ 0 lies among the levels: the lowest of these lines at r, and k at levels[k]. Between two
        levels it is linear.
      last: beyond the last level but one, r lies where this line has it, if that is more.
      most_negative: the largest k that has a negative.
      signed: whether any has.
    """

    levels: NDArray[np.float32]
    values: Lines
    places: Lines
    last: Lines
    most_negative: int
    signed: bool


def _signed() -> DynamicCode:
    """For first moments. The largest number has a sign in its scale, so that 1 is enough and −1 is not missed."""
    positive, values, places, last = _magnitudes(64)
    levels = np.concatenate([positive, -positive[127:0:-1]])
    return DynamicCode(levels, values, places, last, most_negative=127, signed=True)


def _unsigned() -> DynamicCode:
    """For second moments."""
    return DynamicCode(*_magnitudes(128), most_negative=0, signed=False)


def _magnitudes(most_parts: int) -> tuple[NDArray[np.float32], Lines, Lines, Lines]:
    """``levels`` from 0 to 1, ``values``, ``places``, ``last``; ``most_parts`` is how many the largest decade has."""
    below = np.arange(DECADES)[::-1]
    parts, units = most_parts >> below, 10.0**-below
    inside = [unit * (0.1 + 0.9 * (np.arange(n) + 0.5) / n) for n, unit in zip(parts, units, strict=True)]
    middles = np.concatenate([[0.0], *inside])
    lasts = np.cumsum(parts)
    bends = np.unique([0, *(lasts - parts + 1), *lasts])
    # Counted from the largest, every second line is a decade's; the others bridge two.
    values = Lines(*(each[::-2].copy() for each in _through(bends, middles[bends])))
    levels = np.append(_highest(values, np.arange(len(middles))), np.float32(1))
    places = _through(levels[bends], bends)
    last = _through(levels[-2:], np.array([len(levels) - 2, len(levels) - 1]))
    return levels, values, places, last


def _through(x: Array, y: Array) -> Lines:
    """The lines from each point to the next."""
    x = x.astype(np.float64)
    slopes = np.diff(y) / np.diff(x)
    return Lines(slopes.astype(np.float32), (y[:-1] - slopes * x[:-1]).astype(np.float32))


def _highest(lines: Lines, x: Array) -> NDArray[np.float32]:
    # In float64 neither product nor sum is rounded: what is left is the one rounding of a fused multiply-add.
    heights = lines.slopes.astype(np.float64) * x[:, None] + lines.offsets
    highest: NDArray[np.float32] = heights.max(1).clip(0).astype(np.float32)
    return highest


SIGNED = _signed()
UNSIGNED = _unsigned()
