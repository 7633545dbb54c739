"""The part of a body that is tensors, on its way out: piece by piece, from the memory where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from optimd_service.wire.flat import flat_bytes
from optimd_service.wire.staging import fetched

# Enough that a call costs nothing beside its bytes.
PIECE_BYTES = 2**21
# Of what is converted: small enough to be sent out of the cache.
CONVERTED = 2**18

Convert = Callable[[torch.Tensor, torch.Tensor, int], None]
"""Writes into the first, shape [k], what is sent of the second, which begins at an element of its stretch."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Stretches of flat buffers, one behind the other, in one dtype.

    Attributes:
      stretches: shape [n] each; they must not change until they are sent.
      dtype: on the wire.
      ready: waits until a stretch of the first can be read up to an element, where it is still being written.
      convert_: makes what is sent; None where that is the elements themselves.
    """

    stretches: Sequence[torch.Tensor] = ()
    dtype: torch.dtype = torch.float32
    ready: Callable[[int], None] | None = None
    convert_: Convert | None = None

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * sum([stretch.numel() for stretch in self.stretches])

    @property
    def waits(self) -> bool:
        """Whether its pieces may have to be waited for, however small it is."""
        return self.ready is not None or not all(stretch.is_cpu for stretch in self.stretches)

    def pieces(self) -> Iterator[memoryview]:
        """The bytes; those of a piece may change when the next is asked for."""
        for stretch in self.stretches:
            if not stretch.is_cpu:
                yield from map(flat_bytes, fetched(stretch, self.dtype, self.ready))
                continue
            as_it_lies = self.convert_ is None and stretch.dtype is self.dtype
            width = PIECE_BYTES // self.dtype.itemsize if as_it_lies else CONVERTED
            made = torch.empty(0 if as_it_lies else min(width, len(stretch)), dtype=self.dtype)
            for start in range(0, len(stretch), width):
                if self.ready is not None:
                    self.ready(min(start + width, len(stretch)))
                part = stretch[start : start + width]
                yield flat_bytes(part if as_it_lies else self._converted(made[: len(part)], part, start))

    def _converted(self, out: torch.Tensor, part: torch.Tensor, start: int) -> torch.Tensor:
        if self.convert_ is None:
            return out.copy_(part)
        self.convert_(out, part, start)
        return out


@dataclass(frozen=True, slots=True)
class Trailed:
    """Tensors, and behind them a text that may not be known before they are sent.

    Attributes:
      text: waits for it if need be; no longer than ``width`` bytes, to which blanks fill it up.
    """

    tensors: Payload
    text: Callable[[], bytes]
    width: int

    @property
    def nbytes(self) -> int:
        return self.tensors.nbytes + self.width

    @property
    def waits(self) -> bool:
        """As that of the tensors."""
        return self.tensors.waits

    def pieces(self) -> Iterator[memoryview]:
        """As those of the tensors."""
        yield from self.tensors.pieces()
        yield memoryview(self.text().ljust(self.width))


NOTHING = Payload()
