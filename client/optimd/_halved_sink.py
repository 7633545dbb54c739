"""Receiving weights in two halves at once, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from optimd import _safetensors
from optimd._sink import TensorSink
from optimd.errors import ConnectionFailed, MalformedReply


@dataclass(frozen=True)
class _Half:
    places: Callable[[int], Iterator[memoryview]]


@dataclass
class HalvedSink:
    """Takes a safetensors file of which each half comes by itself; what it is for is written to by both.

    Args:
      whole: `tensors` and `metadata` are there once both halves have come.
      cut_at: the byte of the file with which the second half begins.

    Attributes:
      first, second: take the halves; the second waits for the header, which is in the first.
    """

    whole: TensorSink
    cut_at: int
    _places: Iterator[memoryview] | None = field(default=None, init=False)
    _length: int = field(default=0, init=False)
    _decided: threading.Event = field(default_factory=threading.Event, init=False)

    @property
    def first(self) -> _Half:
        return _Half(self._first)

    @property
    def second(self) -> _Half:
        return _Half(self._second)

    def abandon(self) -> None:
        """Let the second half wait no longer: the first will not come."""
        self._decided.set()

    def _first(self, length: int) -> Iterator[memoryview]:
        prefix = memoryview(bytearray(min(8, length)))
        yield prefix
        header = memoryview(bytearray(_safetensors.header_length(prefix, length)))
        yield header
        entries, self.whole.metadata = _safetensors.decode_header(header)
        behind = 8 + len(header)
        if length != self.cut_at:
            raise MalformedReply(f"The first half of the reply has {length} bytes, not the {self.cut_at} asked for.")
        places, self._places = self.whole.halves(entries, self.cut_at - behind)
        self._length = behind + entries[-1][1].stop - self.cut_at
        self._decided.set()
        yield from places

    def _second(self, length: int) -> Iterator[memoryview]:
        self._decided.wait()
        if self._places is None:
            raise ConnectionFailed("The first half of the reply did not come.")
        if length != self._length:
            raise MalformedReply(f"The second half of the reply has {length} bytes, not {self._length}.")
        yield from self._places
