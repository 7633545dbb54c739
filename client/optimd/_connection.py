"""One HTTP/1.1 connection: buffers go from the caller's memory to the socket, and bodies to where they are wanted.

http.client parses a reply's headers with the email package, which costs more than the rest of a small exchange.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from ssl import SSLSocket
from time import monotonic

import numpy as np

from optimd._exchange import Intake, Reply, Request
from optimd._opening import share
from optimd._reading import LINE_BYTES, Reader
from optimd.errors import ConnectionFailed, MalformedReply

# Below, head and body leave in one segment; above, in pieces of the sizes that measured fastest on loopback.
_JOINED_BYTES = 64 * 2**10
_SEND_BYTES = 2 * 2**20
_RECEIVE_BYTES = 256 * 2**10
_HEADER_LINES = 200
_TRUSTED_IDLE_S = 1.0


class ClosedUnanswered(ConnectionFailed):
    """The server closed the connection before the first byte of a reply."""


class Connection:
    """An open connection. After any error it must be closed; `is_reusable` says whether it may be kept.

    Args:
      opened: a connected socket, which is the connection's own from now on.
    """

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._reader = Reader(opened)
        self._patience_s = 0.0
        self._used_at = monotonic()
        self._shares: bool | None = None
        self.is_reusable = True

    def exchange(self, head: bytes, request: Request, timeout_s: float) -> Reply:
        """Send one request and read its reply, bearing ``timeout_s`` of silence.

        Raises: ClosedUnanswered, ConnectionFailed, MalformedReply; OSError from the socket, of which TimeoutError and
        BlockingIOError mean silence.
        """
        if timeout_s != self._patience_s:
            self._be_patient(timeout_s)
        try:
            self._send(head, request)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body answers and closes without reading the rest: its answer may be there.
            self.is_reusable = False
        reply = self._receive(request)
        self._used_at = monotonic()
        return reply

    def seems_open(self) -> bool:
        """False when the server has closed a connection that lay idle: there is an end of file to be read."""
        if monotonic() - self._used_at < _TRUSTED_IDLE_S:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return not selector.select(timeout=0)

    def share(self) -> bool:
        """Prepare for a body of which another connection carries a part at the same time.

        Returns: whether the bytes stay inside this machine, and go through TCP.

        Inside one machine two streams with the buffers that TCP chooses for one drive each other's bytes out of the
        cache between sender and receiver; with small ones each is copied twice where it is still near.
        """
        if self._shares is None:
            self._shares = share(self._socket)
        return self._shares

    def abort(self) -> None:
        """Break off an exchange that another thread is in."""
        with suppress(OSError):  # the server may have ended it, or that thread
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _be_patient(self, timeout_s: float) -> None:
        """Bear so much silence in each call. The kernel keeps the time itself: Python asks it before every call."""
        self._patience_s = timeout_s
        if os.name != "posix" or isinstance(self._socket, SSLSocket):
            self._socket.settimeout(timeout_s)
            return
        seconds, rest = divmod(max(1, int(timeout_s * 1e6)), 10**6)
        self._socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, rest))

    def _send(self, head: bytes, request: Request) -> None:
        if request.body_bytes <= _JOINED_BYTES:
            self._socket.sendall(b"".join((head, *request.buffers())))
            return
        for piece in _pieces(chain((memoryview(head),), request.buffers())):
            self._socket.sendall(piece)

    def _receive(self, request: Request) -> Reply:
        status, headers = self._final_head()
        if request.method == "HEAD" or status in {204, 304}:
            return Reply(status, headers, memoryview(b""))
        if "transfer-encoding" not in headers and "content-length" in headers:
            return self._receive_sized(request, status, headers)
        intake = Intake(request, status, headers)
        for piece in self._chunks() if "transfer-encoding" in headers else self._until_closed():
            intake.write(piece)
        return intake.reply()

    def _receive_sized(self, request: Request, status: int, headers: dict[str, str]) -> Reply:
        length, sink = _whole_number(headers["content-length"]), request.sink_for(status, headers)
        body = memoryview(b"")
        if sink is not None:
            for place in sink.places(length):
                self._fill(place)
        elif length:
            body = np.empty(length, np.uint8).data
            self._fill(body)
        return Reply(status, headers, body)

    def _final_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, past any interim (1xx) replies."""
        while True:
            version, status = self._status_line()
            headers = self._headers()
            if status >= 200:
                break
        if version != b"HTTP/1.1" or headers.get("connection", "").lower() == "close":
            self.is_reusable = False
        return status, headers

    def _status_line(self) -> tuple[bytes, int]:
        try:
            line = self._reader.line()
        except ConnectionResetError as error:
            raise ClosedUnanswered("The server closed the connection without an answer.") from error
        if not line:
            raise ClosedUnanswered("The server closed the connection without an answer.")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise MalformedReply("The reply is not HTTP/1.1: is this URL an optimd server's?")
        return version, _whole_number(rest[:3].decode("latin-1"))

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(_HEADER_LINES):
            line = self._line()
            if not line:
                return headers
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        raise MalformedReply(f"The reply has more than {_HEADER_LINES} headers.")

    def _line(self) -> str:
        line = self._reader.line()
        if not line.endswith(b"\n"):
            raise self._cut() if len(line) < LINE_BYTES else MalformedReply("A line of the reply is too long.")
        return line.rstrip(b"\r\n").decode("latin-1")

    def _fill(self, place: memoryview) -> None:
        if self._reader.fill(place) != place.nbytes:
            raise self._cut()

    def _chunks(self) -> Iterator[bytes]:
        while size := _whole_number(self._line().partition(";")[0].strip(), base=16):
            piece = self._reader.read(size)
            if len(piece) < size or self._line():
                raise self._cut()
            yield piece
        while self._line():  # trailers
            pass

    def _until_closed(self) -> Iterator[bytes]:
        self.is_reusable = False
        while piece := self._reader.read(_RECEIVE_BYTES):
            yield piece

    @staticmethod
    def _cut() -> ConnectionFailed:
        return ConnectionFailed("The connection ended in the middle of a reply.")


def _pieces(buffers: Iterable[memoryview]) -> Iterator[bytes | memoryview]:
    """Large buffers as they are, cut to size; small ones joined, since each send is a segment of its own."""
    small = bytearray()
    for buffer in buffers:
        if buffer.nbytes <= _JOINED_BYTES:
            small += buffer
        if small and (buffer.nbytes > _JOINED_BYTES or len(small) > _JOINED_BYTES):
            yield bytes(small)
            small.clear()
        if buffer.nbytes > _JOINED_BYTES:
            yield from (buffer[start : start + _SEND_BYTES] for start in range(0, buffer.nbytes, _SEND_BYTES))
    if small:
        yield bytes(small)


def _whole_number(text: str, base: int = 10) -> int:
    try:
        number = int(text, base)
    except ValueError as error:
        raise MalformedReply(f"The reply has {text[:20]!r} where a number must stand.") from error
    if number < 0:
        raise MalformedReply(f"The reply has {number} where no negative number can stand.")
    return number
