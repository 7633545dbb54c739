"""The connection's socket, lent to a thread for the length of one body.

An ASGI server hands a body out in pieces of its own making, and takes a reply the same way. For a body the size of a
model that is a copy more, and a turn of the event loop for every piece. Here a thread receives into the memory where
the body belongs, and sends from the memory where it lies, while the event loop serves everybody else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from optimd_service.wire.disconnected import Disconnected

EXTENSION = "optimd.direct"
# The kernel's default for Unix sockets, 208 KiB, halves their speed; TCP finds its own.
UNIX_BUFFER_BYTES = 2**20
SHARED_BUFFER_BYTES = 2**18
_FLUSH_S = 0.002


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; each scope has an extension that lends the socket."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        self._descriptor = connection.fileno()
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER_BYTES)

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scheme == "http":
            self.scope["extensions"] = {EXTENSION: Direct(self, self.cycle)}  # type: ignore[dict-item]

    def write_together(self, *pieces: bytes | memoryview) -> None:
        """Write pieces with one call to the kernel; what it does not take is copied, and follows."""
        sent = 0
        if not self.transport.get_write_buffer_size():
            # A connection that is gone is the transport's to find out.
            with suppress(OSError):
                sent = os.writev(self._descriptor, pieces)
        if sent < sum(map(len, pieces)):
            self.transport.write(b"".join(pieces)[sent:])

    def body_ended(self) -> None:
        """Go on as after the last byte of a body, which the parser has not seen."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()


class Direct:
    """Lends the socket of one request.

    Attributes:
      shared_here: another connection carries a part of its body at the same time, from or to this very machine.
    """

    __slots__ = ("_cycle", "_protocol", "shared_here")

    def __init__(self, protocol: DirectProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.shared_here = False

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Direct | None:
        """What lends the socket of this request, if the server's protocol does."""
        found = scope.get("extensions", {}).get(EXTENSION)
        return found if isinstance(found, cls) else None

    def arrived(self) -> bytearray | None:
        """The request's body, the caller's from now on, if all of it has come; None if more must be received."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        self._protocol.flow.resume_reading()
        body, cycle.body = cycle.body, bytearray()
        return body

    def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: Iterable[memoryview]) -> bool:
        """Send a whole reply at once; False, with nothing sent, where the client is gone or behind with its reading.

        Args:
          body: pieces that stay as they are until all of them are there.
        """
        protocol, cycle = self._protocol, self._cycle
        # While a transport closes, its descriptor may be another connection's already.
        if protocol.flow.write_paused or cycle.disconnected or protocol.transport.is_closing():
            return False
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        protocol.write_together(b"".join(lines), *body)
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            protocol.transport.close()
        cycle.on_response()
        return True

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[tuple[bytearray, socket.socket]]:
        """Lend the socket for the whole rest of the request's body.

        Yields: the bytes of it that have been read already, and the socket that all others are to be read from.

        After an error inside, the connection ends with its reply: nobody knows where the next request would begin.
        """
        protocol, cycle = self._protocol, self._cycle
        protocol.flow.pause_reading()
        arrived, cycle.body = cycle.body, bytearray()
        try:
            with self._lent() as lent:
                yield arrived, lent
            protocol.body_ended()
        except BaseException:
            cycle.keep_alive = False
            raise
        finally:
            if not protocol.transport.is_closing():
                protocol.flow.resume_reading()

    @asynccontextmanager
    async def sending(self, length: int) -> AsyncIterator[socket.socket]:
        """Lend the socket for ``length`` bytes of the reply's body; all that was written before must be ``flushed``.

        After an error inside, the connection ends there.

        Raises: Disconnected.
        """
        try:
            with self._lent() as lent:
                yield lent
            self._cycle.expected_content_length -= length
        except BaseException:
            self.abandon()
            raise

    def share(self) -> None:
        """Prepare for a body of which another connection carries a part at the same time.

        Inside one machine two streams with the buffers that TCP chooses for one drive each other's bytes out of the
        cache between sender and receiver; with small ones each is copied twice where it is still near.
        """
        own: socket.socket = self._protocol.transport.get_extra_info("socket")
        if own.family != socket.AF_UNIX and own.getpeername()[0] == own.getsockname()[0]:
            self.shared_here = True
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                own.setsockopt(socket.SOL_SOCKET, buffer, SHARED_BUFFER_BYTES)

    def abandon(self) -> None:
        """End the connection where it stands: there is nobody to answer, or no answer that could be finished."""
        self._cycle.disconnected = True
        self._protocol.transport.abort()

    async def flushed(self) -> None:
        """Wait until all that was written is on its way. Raises: Disconnected."""
        transport, pause_s = self._protocol.transport, 0.0
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise Disconnected
            await asyncio.sleep(pause_s)
            pause_s = _FLUSH_S

    def _lent(self) -> socket.socket:
        if self._protocol.transport.is_closing():
            raise Disconnected
        own: socket.socket = self._protocol.transport.get_extra_info("socket")
        # A descriptor of its own: the event loop may close the other while a thread still uses this one.
        return socket.socket(own.family, own.type, own.proto, fileno=os.dup(own.fileno()))


def share(scope: MutableMapping[str, Any]) -> None:
    """Prepare the connection of a request for a body of which another connection carries a part at the same time."""
    direct = Direct.of(scope)
    if direct is not None:
        direct.share()
