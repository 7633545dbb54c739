"""Some of a body's bytes, by their numbers, made from no more of its tensors than they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from optimd_service.wire.payload import Payload


@dataclass(frozen=True, slots=True)
class Cut:
    """The bytes of a payload from ``start`` up to ``stop``; of one that nobody is still writing."""

    whole: Payload
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def waits(self) -> bool:
        """As that of the whole."""
        return self.whole.waits

    def pieces(self) -> Iterator[memoryview]:
        """As those of the whole."""
        itemsize = self.whole.dtype.itemsize
        first, last = self.start // itemsize, -(-self.stop // itemsize)
        covering = replace(self.whole, stretches=_elements(self.whole.stretches, first, last))
        before, left = self.start - first * itemsize, self.nbytes
        for piece in covering.pieces():
            taken = piece[before : before + left]
            yield taken
            before, left = 0, left - len(taken)


def _elements(stretches: Sequence[torch.Tensor], first: int, last: int) -> list[torch.Tensor]:
    """Elements ``first`` up to ``last`` of stretches that follow one another."""
    found, at = [], 0
    for stretch in stretches:
        found.append(stretch[max(first - at, 0) : max(last - at, 0)])
        at += len(stretch)
    return [stretch for stretch in found if len(stretch)]
