"""Random bits that depend on what they are for and on nothing else: no generator is carried from one call to the next.

The bits of element i are a hash of (seed, step, number of the buffer, i), so that threads, blocks and replays agree.
Every 256 elements share a key, mixed from those numbers in 64 bits; within them a 32-bit hash of key and position is
taken, which a processor's vectors compute for sixteen elements at once.

Source: the 64-bit mix is SplitMix64's, Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195, with the constants of
    Stafford's variant 13; the 32-bit one has the shifts and factors of Wellons 2018, nullprogram.com/blog/2018/07/31
    ("lowbias32"), with the second half of the key brought in between its two rounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from optimd_service.optim.kernel import element

KEYED = 256
"""Elements that share a key; a range of them begins at a multiple of this."""

_GOLDEN, _FIRST64, _SECOND64 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31, _32 = map(np.uint64, (30, 27, 31, 32))
_FIRST32, _SECOND32 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_16, _15 = np.uint32(16), np.uint32(15)


class Purpose(NamedTuple):
    """What random bits are for.

    Attributes:
      seed: of the session and group; any integer, of which the lowest 64 bits count.
      step: number of the update, ≥ 1.
      buffer: a number that no other buffer of the group has.
    """

    seed: int
    step: int
    buffer: int

    def words(self) -> tuple[np.uint64, np.uint64, np.uint64]:
        """Seed, step and buffer as the loops take them."""
        seed, step, buffer = (np.uint64(number & 0xFFFFFFFFFFFFFFFF) for number in self)
        return seed, step, buffer


@element
def stream_of(seed: Any, step: Any, buffer: Any) -> Any:
    """The three words of a purpose as one, uint64."""
    return _mixed(_mixed(_mixed(seed) ^ step) ^ buffer)


@element
def key_of(stream: Any, block: Any) -> Any:
    """Both halves, uint32, of the key of one run of 256 elements; ``block`` is its number, uint64."""
    key = _mixed(stream ^ block)
    return np.uint32(key), np.uint32(key >> _32)


@element
def random16(low: Any, high: Any, position: Any) -> Any:
    """16 random bits, in a uint32, for one element; ``position`` is below 256, uint32."""
    x = np.uint32(low + position)
    x = np.uint32(np.uint32(x ^ (x >> _16)) * _FIRST32)
    x = np.uint32(x ^ high)
    x = np.uint32(np.uint32(x ^ (x >> _15)) * _SECOND32)
    return np.uint32(np.uint32(x ^ (x >> _16)) >> _16)


@element
def _mixed(z: Any) -> Any:
    z = z + _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST64
    z = (z ^ (z >> _27)) * _SECOND64
    return z ^ (z >> _31)
