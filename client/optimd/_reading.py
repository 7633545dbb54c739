"""What comes over a socket: lines and bodies, asked of the kernel as seldom as can be."""

from __future__ import annotations

import socket

LINE_BYTES = 64 * 2**10
"""How long a line may be. A small reply, which is no longer, comes whole with one call."""
# Large bodies are received in pieces of the size that measured fastest on loopback.
_PIECE_BYTES = 256 * 2**10


class Reader:
    """Reads a socket that it does not own; every call may raise what the socket does."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._memory = bytearray(LINE_BYTES)
        self._view = memoryview(self._memory)
        self._start = self._stop = 0

    def line(self) -> bytes:
        """The next line with its line feed; without one where the stream ends before, or ``LINE_BYTES`` hold none."""
        while (end := self._memory.find(b"\n", self._start, self._stop)) < 0 and self._more():
            pass
        start, self._start = self._start, self._stop if end < 0 else end + 1
        return bytes(self._view[start : self._start])

    def fill(self, place: memoryview) -> int:
        """Fill a byte buffer; fewer bytes come only where the stream ends."""
        filled = min(place.nbytes, self._stop - self._start)
        place[:filled] = self._view[self._start : self._start + filled]
        self._start += filled
        while filled < place.nbytes and (got := self._source.recv_into(place[filled : filled + _PIECE_BYTES])):
            filled += got
        return filled

    def read(self, most: int) -> bytes:
        """So many bytes; fewer where the stream ends. Memory grows with what comes, not with what is asked for."""
        read = bytearray()
        while len(read) < most and (self._start < self._stop or self._more()):
            piece = self._view[self._start : min(self._stop, self._start + most - len(read))]
            self._start += len(piece)
            read += piece
        return bytes(read)

    def _more(self) -> bool:
        """Receive behind what is there; False at the end of the stream, and where there is no room."""
        kept = self._stop - self._start
        if self._start:
            self._memory[:kept] = self._memory[self._start : self._stop]
            self._start, self._stop = 0, kept
        got = self._source.recv_into(self._view[kept:]) if kept < LINE_BYTES else 0
        self._stop += got
        return got > 0
