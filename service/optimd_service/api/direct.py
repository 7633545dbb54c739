"""The connection's socket, lent to a thread for the length of one body.

An ASGI server hands a body out in pieces of its own making, and takes a reply the same way. For a body the size of a
model that is a copy more, and a turn of the event loop for every piece. Here a thread receives into the memory where
the body belongs, and sends from the memory where it lies, while the event loop serves everybody else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from optimd_service.wire.disconnected import Disconnected

EXTENSION = "optimd.direct"
# The kernel's default for Unix sockets, 208 KiB, halves their speed; TCP finds its own.
UNIX_BUFFER_BYTES = 2**20
_FLUSH_S = 0.002


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; each scope has an extension that lends the socket."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER_BYTES)

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scheme == "http":
            self.scope["extensions"] = {EXTENSION: Direct(self, self.cycle)}  # type: ignore[dict-item]

    def body_ended(self) -> None:
        """Go on as after the last byte of a body, which the parser has not seen."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()


class Direct:
    """Lends the socket of one request."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: DirectProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Direct | None:
        """What lends the socket of this request, if the server's protocol does."""
        found = scope.get("extensions", {}).get(EXTENSION)
        return found if isinstance(found, cls) else None

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
