"""A request body, read piece by piece from an ASGI server into memory that is already there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Protocol

from optimd_service.errors import BodyTimeout, MalformedSafetensors, TooLarge
from optimd_service.wire.disconnected import Disconnected
from optimd_service.wire.elsewhere import Elsewhere

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# Below, a thread costs more than it saves.
LARGE = 2**20


class Shortcut(Protocol):
    """Receives large bodies by a shorter way than ASGI's."""

    async def receive(self, before: memoryview, places: Iterator[memoryview]) -> None:
        """Fill ``places`` with ``before`` and the whole rest of the body.

        Raises: BodyTimeout, Disconnected, and whatever ``places`` raise.
        """


class Body:
    """Reads a body exactly as far as asked.

    Args:
      receive: the ASGI callable.
      idle_timeout_s: silence after which the client is taken for stalled.
      length: what the client said of it; None if it did not.
      shortcut: for a large payload, if there is one.
      arrived: all of it, if it has come already; nothing is received then.

    Every method raises BodyTimeout and Disconnected.
    """

    def __init__(
        self,
        receive: Receive,
        *,
        idle_timeout_s: float,
        length: int | None = None,
        shortcut: Shortcut | None = None,
        arrived: bytearray | None = None,
    ) -> None:
        self._receive = receive
        self._idle_timeout_s = idle_timeout_s
        self._length = length
        self._shortcut = shortcut
        self._piece = memoryview(arrived or b"")
        self._taken = 0
        self._more = arrived is None

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
            raise silent_for(self._idle_timeout_s) from None

    async def _available(self) -> bool:
        while not self._piece and self._more:
            await self._next()
        return bool(self._piece)

    def _take(self, most: int) -> memoryview:
        """Of the piece that is available."""
        taken = self._piece[:most]
        self._piece = self._piece[len(taken) :]
        self._taken += len(taken)
        return taken

    async def pour(
        self, places: Iterator[memoryview], length: int, *, run: Elsewhere, what: str, waits: bool = False
    ) -> None:
        """Fill ``places``, together ``length`` bytes long, to the body's end.

        Args:
          run: where large ``places`` do what they do in between.
          waits: what they do may wait for somebody else, however small they are.

        Raises: MalformedSafetensors when the body ends before them or behind.
        """
        shortcut = self._shortcut
        if shortcut is not None and length >= LARGE and self._more and self._length == self._taken + length:
            await shortcut.receive(self._piece, places)
            return
        start = self._taken
        place = await run(next, places, None) if waits else next(places, None)
        while place is not None:
            if not await self._fill(place):
                raise _cut_short(what, self._taken - start, length)
            place = await run(next, places, None) if waits or length >= LARGE else next(places, None)
        await self.end()

    async def _fill(self, place: memoryview) -> bool:
        at = 0
        while at < len(place) and await self._available():
            taken = self._take(len(place) - at)
            place[at : at + len(taken)] = taken
            at += len(taken)
        return at == len(place)

    async def exactly(self, length: int, *, rule: str, what: str) -> bytearray:
        """Read ``length`` bytes; a body that ends before breaks ``rule``.

        Memory grows with what arrives, not with what is claimed.
        """
        if length <= len(self._piece):
            return bytearray(self._take(length))
        read = bytearray()
        while len(read) < length and await self._available():
            read += self._take(length - len(read))
        if len(read) < length:
            raise _cut_short(what, len(read), length, rule)
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
            read += self._take(len(self._piece))
        return read


def _cut_short(what: str, got: int, length: int, rule: str = "truncated") -> MalformedSafetensors:
    return MalformedSafetensors(f"The body ends inside {what}: {got} of {length} bytes.", rule=rule)


def silent_for(idle_timeout_s: float) -> BodyTimeout:
    """What a client is told that stopped in the middle of its body."""
    return BodyTimeout(f"No byte of the body came for {idle_timeout_s:g} s; nothing was changed. Send it again.")
