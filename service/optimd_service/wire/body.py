"""A request body, read piece by piece from an ASGI server into memory that is already there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from optimd_service.errors import BodyTimeout, MalformedSafetensors, TooLarge

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Disconnected(Exception):
    """The client went away in the middle of its body: there is nobody to answer."""


class Body:
    """Reads a body exactly as far as asked.

    Args:
      receive: the ASGI callable.
      idle_timeout_s: silence after which the client is taken for stalled.

    Every method raises BodyTimeout and Disconnected.
    """

    def __init__(self, receive: Receive, *, idle_timeout_s: float) -> None:
        self._receive = receive
        self._idle_timeout_s = idle_timeout_s
        self._piece = memoryview(b"")
        self._more = True

    async def _next(self) -> None:
        message = await self._in_time(self._receive())
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._piece = memoryview(message.get("body", b""))
        self._more = message.get("more_body", False)

    async def _in_time(self, receiving: Awaitable[Message]) -> Message:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await receiving
        except TimeoutError:
            raise BodyTimeout(
                f"No byte of the body came for {self._idle_timeout_s:g} s; nothing was changed. Send it again."
            ) from None

    async def _available(self) -> bool:
        while not self._piece and self._more:
            await self._next()
        return bool(self._piece)

    async def into(self, view: memoryview) -> int:
        """Fill ``view`` (bytes); return how many came before the body ended."""
        at = 0
        while at < len(view) and await self._available():
            taken = self._piece[: len(view) - at]
            view[at : at + len(taken)] = taken
            at += len(taken)
            self._piece = self._piece[len(taken) :]
        return at

    async def exactly(self, length: int, *, rule: str, what: str) -> bytearray:
        """Read ``length`` bytes; a body that ends before breaks ``rule``.

        Memory grows with what arrives, not with what is claimed.
        """
        read = bytearray()
        while len(read) < length and await self._available():
            taken = self._piece[: length - len(read)]
            read += taken
            self._piece = self._piece[len(taken) :]
        if len(read) < length:
            raise MalformedSafetensors(f"The body ends inside {what}: {len(read)} of {length} bytes.", rule=rule)
        return read

    async def end(self) -> None:
        """Make sure that nothing follows."""
        if await self._available():
            raise MalformedSafetensors("Bytes follow the last tensor; remove them.", rule="trailing")

    async def everything(self, limit: int, *, advice: str) -> bytearray:
        """Read to the end. Raises TooLarge past ``limit`` bytes; ``advice`` says what to do then."""
        read = bytearray()
        while await self._available():
            if len(read) + len(self._piece) > limit:
                raise TooLarge(f"The body is larger than {limit} bytes. {advice}", limit=limit)
            read += self._piece
            self._piece = memoryview(b"")
        return read
