"""A reply that streams a large body from the memory it lies in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from optimd_service.wire.body import Disconnected
from optimd_service.wire.encode import Encoded

# Small enough for the server's flow control, large enough that a piece costs nothing beside its bytes.
PIECE_BYTES = 2 * 1024 * 1024
# Up to here head and payload are joined: one copy is cheaper than one more write.
JOINED_BYTES = 64 * 1024
# The end of every body is sent from a copy. A send returns while the transport still holds up to its high-water mark of
# 64 KiB, and the last bytes must not be weights that the next step writes over. Twice that, so that the transport asks
# to be waited for.
COPIED_BYTES = 128 * 1024


class EncodedResponse(Response):
    """Sends an encoded body with its Content-Length, and then lets go of the memory.

    Args:
      release: called once, when the body is sent or cannot be.
      idle_timeout_s: how long a client may read nothing before it is given up.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        media_type: str,
        headers: dict[str, str],
        idle_timeout_s: float,
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
        self._idle_timeout_s = idle_timeout_s
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  an ASGI application's
        """Send it; the release happens whatever becomes of the connection."""
        try:
            await self._send(send)
        finally:
            self._release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        head, payload = self._encoded.head, self._encoded.payload
        if len(self._encoded) <= JOINED_BYTES:
            await send({"type": "http.response.body", "body": head + bytes(payload)})
            return
        lent = max(0, len(payload) - COPIED_BYTES)
        pieces = [payload[at : min(at + PIECE_BYTES, lent)] for at in range(0, lent, PIECE_BYTES)]
        for piece in (head, *pieces, bytes(payload[lent:])):
            await self._in_time(send({"type": "http.response.body", "body": piece, "more_body": True}))
        await self._in_time(send({"type": "http.response.body", "body": b""}))

    async def _in_time(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                await sending
        except TimeoutError:
            raise Disconnected from None
