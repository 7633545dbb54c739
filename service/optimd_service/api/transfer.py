"""Moving a body between a socket and memory, in a thread.

What it is moved to, or from, are places that a generator yields in turn: the bytes of one are there, or sent, when it
is asked for the next, so it may convert, judge or wait in between.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.types import Scope

from optimd_service.api.direct import Direct
from optimd_service.api.nearness import near_other_end
from optimd_service.wire.body import silent_for
from optimd_service.wire.disconnected import Disconnected
from optimd_service.wire.elsewhere import Transfers


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moves bodies over the socket of one request.

    Attributes:
      threads: to do so in.
      idle_timeout_s: how long the client may send or read nothing.
    """

    direct: Direct
    threads: Transfers
    idle_timeout_s: float

    @classmethod
    def of(cls, scope: Scope, threads: Transfers, idle_timeout_s: float) -> Transfer | None:
        """What moves bodies for this request, if the server lends its socket and a thread is free."""
        direct = Direct.of(scope)
        return cls(direct, threads, idle_timeout_s) if direct is not None and threads.idle else None

    async def receive(self, before: memoryview, places: Iterator[memoryview]) -> None:
        """Fill ``places`` with ``before`` and the whole rest of the request's body.

        Raises: BodyTimeout, Disconnected, and whatever ``places`` raise.
        """
        async with self.direct.receiving() as (arrived, lent):
            lent.settimeout(self.idle_timeout_s)
            try:
                early = memoryview(bytes(before) + arrived)
                await self._interruptible(lent, partial(_fill, lent, early), places)
                self.direct.shared_here = False  # weights in the reply come over this connection alone
            except TimeoutError:
                raise silent_for(self.idle_timeout_s) from None
            except (OSError, Disconnected):
                self.direct.abandon()
                raise Disconnected from None

    async def send(self, pieces: Iterator[memoryview], length: int) -> None:
        """Send ``pieces``, together ``length`` bytes. Raises: Disconnected, and whatever ``pieces`` raise."""
        try:
            async with asyncio.timeout(self.idle_timeout_s):
                await self.direct.flushed()
        except TimeoutError:  # the client does not read what came before
            self.direct.abandon()
            raise Disconnected from None
        async with self.direct.sending(length) as lent:
            lent.settimeout(self.idle_timeout_s)
            try:
                await self._interruptible(lent, partial(_drain, lent), pieces)
            except OSError:
                raise Disconnected from None

    async def _interruptible(
        self, lent: socket.socket, move: Callable[[Iterator[memoryview]], None], places: Iterator[memoryview]
    ) -> None:
        """Await ``move(places)`` in a thread; whoever cancels need not wait until the other side has moved."""
        placed = partial(near_other_end, lent, move) if self.direct.shared_here else move
        moving = asyncio.ensure_future(self.threads.run(placed, places))
        try:
            await asyncio.shield(moving)
        except asyncio.CancelledError:
            with suppress(OSError):  # the other side may have ended it
                lent.shutdown(socket.SHUT_RDWR)
            await asyncio.gather(moving, return_exceptions=True)
            raise


def _fill(lent: socket.socket, early: memoryview, places: Iterator[memoryview]) -> None:
    for place in places:
        filled = min(len(early), len(place))
        place[:filled] = early[:filled]
        early = early[filled:]
        while filled < len(place):
            got = lent.recv_into(place[filled:])
            if not got:
                raise Disconnected
            filled += got


def _drain(lent: socket.socket, pieces: Iterator[memoryview]) -> None:
    for piece in pieces:
        sent = 0
        while sent < len(piece):  # not sendall, whose patience is for the whole piece
            sent += lent.send(piece[sent:])
