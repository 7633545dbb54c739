"""A reply that streams a large body from the memory it lies in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from optimd_service.api.transfer import Transfer
from optimd_service.session.following import Unfinished
from optimd_service.wire.body import LARGE
from optimd_service.wire.disconnected import Disconnected
from optimd_service.wire.elsewhere import Elsewhere
from optimd_service.wire.encode import Encoded

# Up to here all is joined: one copy is cheaper than one more write.
JOINED_BYTES = 64 * 1024


class Sending(NamedTuple):
    """How large bodies are sent.

    Attributes:
      run: runs a function in a thread: to make the pieces of a body may be work.
      transfer: sends over the request's own socket, if that can be.
      idle_timeout_s: how long a client may read nothing before it is given up.
    """

    run: Elsewhere
    transfer: Transfer | None
    idle_timeout_s: float


class EncodedResponse(Response):
    """Sends an encoded body with its Content-Length, and then lets go of the memory.

    Args:
      sending: how, if it is large.
      release: called once, when the body is sent or cannot be.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        media_type: str,
        headers: dict[str, str],
        sending: Sending,
        release: Callable[[], None] = lambda: None,
        status_code: int = 200,
    ) -> None:
        # Not Response.__init__: reading headers that are ready would cost as much as sending a small body.
        self.status_code = status_code
        self.background = None
        self.raw_headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(encoded)).encode()),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ]
        self._encoded = encoded
        self._sending = sending
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  an ASGI application's
        """Send it; the release happens whatever becomes of the connection."""
        try:
            await self._send(send)
        except (Disconnected, Unfinished):
            return  # a reply that has begun is no place for a problem; the server ends the connection
        finally:
            self._release()

    async def _send(self, send: Send) -> None:
        length, pieces, last = len(self._encoded), self._encoded.pieces(), b""
        transfer = self._sending.transfer
        small, waits = length <= JOINED_BYTES, self._encoded.payload.waits
        if small and not waits and transfer and transfer.direct.reply(self.status_code, self.raw_headers, pieces):
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if small:
            last = await self._sending.run(b"".join, pieces) if waits else b"".join(pieces)
        elif length >= LARGE and transfer is not None:
            await transfer.send(pieces, length)
        else:
            await self._send_copies(pieces, send)
        await self._in_time(send({"type": "http.response.body", "body": last}))

    async def _send_copies(self, pieces: Iterator[memoryview], send: Send) -> None:
        # Copies, since the server keeps what it could not send, and the next piece or step would write over it.
        while (piece := await self._sending.run(next, pieces, None)) is not None:
            await self._in_time(send({"type": "http.response.body", "body": bytes(piece), "more_body": True}))

    async def _in_time(self, sent: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._sending.idle_timeout_s):
                await sent
        except TimeoutError:
            raise Disconnected from None
