"""Reading a segment from its beginning: every byte that is given out has been checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from optimd_service.store.disk import PAGE, File, aligned, padded
from optimd_service.store.record import BLOCK, MAGIC, Head, Meta, sum_of
from optimd_service.store.segment import Opening

# Read at once: holds some small records.
WINDOW = 2**20


class Unsound(Exception):
    """What lies at ``at`` is not record ``seq``, which belongs there."""

    def __init__(self, at: int, seq: int) -> None:
        super().__init__(at, seq)
        self.at = at
        self.seq = seq


class Found(NamedTuple):
    """A record whose head and meta are sound.

    Attributes:
      at: where it begins in the segment.
    """

    at: int
    head: Head
    meta: Meta

    @property
    def end(self) -> int:
        return self.at + self.head.nbytes


class _Window:
    """Looks at parts of a file. What ``view`` gave is good until the next call."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._memory = aligned(WINDOW)
        self._at = self._filled = 0

    def view(self, at: int, nbytes: int) -> memoryview:
        """What is there, shorter where the file ends."""
        begin = at - self._at
        if begin < 0 or begin + nbytes > self._filled:
            if nbytes > len(self._memory):
                self._memory = aligned(nbytes)
            self._at, begin = at, 0
            self._filled = self._file.read_into(at, self._memory)
        return self._memory[begin : min(begin + nbytes, self._filled)]


class SegmentReader:
    """Reads one segment.

    Raises: JournalCorrupt, if it is none; OSError.
    """

    def __init__(self, path: Path) -> None:
        self._file = File(path)
        self._window = _Window(self._file)
        self._memory = memoryview(b"")
        self.opening = self._open(path)

    def _open(self, path: Path) -> Opening:
        try:
            return Opening.read(path, self._window.view(0, PAGE))
        except BaseException:
            self.close()
            raise

    def walk(self) -> Iterator[Found]:
        """Every record in order, without its payload. Raises: Unsound, where they end."""
        at, seq = PAGE, self.opening.first
        while True:
            found = self._at(at, seq)
            yield found
            at, seq = found.end, seq + 1

    def _at(self, at: int, seq: int) -> Found:
        head = Head.unpack(self._window.view(at, PAGE), self.opening.salt)
        if head is None or head.seq != seq:
            raise Unsound(at, seq)
        length = padded(head.meta_bytes)
        if head.nbytes <= WINDOW:
            text = self._window.view(at, head.nbytes)[head.meta_at :]
        else:
            text = self._window.view(at + head.meta_at, length)
        if len(text) < length or sum_of(text) != head.meta_sum:
            raise Unsound(at, seq)
        return Found(at, head, Meta.unpack(bytes(text[: head.meta_bytes])))

    def payload(self, found: Found, into: memoryview | None = None) -> memoryview:
        """The payload of what ``walk`` has just given.

        Args:
          into: where to. Without it, it is good until ``walk`` goes on.

        Raises: Unsound, if it is not what was written; ValueError, if ``into`` is too short.
        """
        nbytes = found.head.payload_bytes
        if into is not None and len(into) < nbytes:
            raise ValueError(f"a payload of {nbytes} bytes does not go into {len(into)}")
        if found.head.nbytes > WINDOW:
            place = self._own(nbytes) if into is None else into[:nbytes]
            self._read(found, place, step=BLOCK)
            return place
        here = self._window.view(found.at, found.head.nbytes)[PAGE : PAGE + nbytes]
        if any(sum_of(here) != expected for expected in found.meta.sums):  # one, or none: a window is within a block
            raise Unsound(found.at, found.head.seq)
        if into is None:
            return here
        into[:nbytes] = here
        return into[:nbytes]

    def check(self, found: Found) -> None:
        """Read the payload of what ``walk`` has just given, and keep none of it. Raises: Unsound."""
        self._read(found, self._own(min(found.head.payload_bytes, BLOCK)), step=0)

    def _read(self, found: Found, place: memoryview, step: int) -> None:
        """Read block after block, each ``step`` bytes further in ``place``."""
        for number, expected in enumerate(found.meta.sums):
            start = number * BLOCK
            nbytes = min(BLOCK, found.head.payload_bytes - start)
            block = place[number * step : number * step + nbytes]
            if self._file.read_into(found.at + PAGE + start, block) < nbytes or sum_of(block) != expected:
                raise Unsound(found.at, found.head.seq)

    def _own(self, nbytes: int) -> memoryview:
        if len(self._memory) < nbytes:
            self._memory = aligned(nbytes)
        return self._memory[:nbytes]

    def holds_later(self, at: int, seq: int) -> bool:
        """Whether the head of a record behind ``seq`` lies anywhere from ``at`` on."""
        for page_at in range(at, self._file.size, PAGE):
            page = self._window.view(page_at, PAGE)
            if page[: len(MAGIC)] == MAGIC:
                head = Head.unpack(page, self.opening.salt)
                if head is not None and head.seq > seq:
                    return True
        return False

    def close(self) -> None:
        self._file.close()
