"""Pushes whose bodies come in segments, over several connections at once.

The segment that begins the body leads: it is the push, with its preconditions, its turn and its reply. The others only
bring bytes. They meet by the push's key, in whatever order they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial

from optimd_service.errors import Problem, SegmentMisplaced, SegmentsIncomplete, StepInFlight
from optimd_service.wire.gathered import GatheredBody
from optimd_service.wire.segment import Segment

# How late a segment of a push that is over may come and still be told what became of it; so long it waits for another
# attempt, since it may be that one's.
REMEMBERED_S = 1.0

Receive = Callable[[GatheredBody], Awaitable[None]]
"""Receives a segment into its place."""


class Gathering:
    """The segments of one push.

    Args:
      idle_timeout_s: how long it waits for a segment that nobody has begun to send.
      forget: called a while after the last request has left it.
    """

    def __init__(self, idle_timeout_s: float, forget: Callable[[Gathering], None]) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._forget = forget
        self._present = 0
        self._next: Gathering | None = None
        self._followed = asyncio.Event()
        self._led = asyncio.Event()
        self._decided = asyncio.Event()
        self._changed = asyncio.Event()
        self._body: GatheredBody | None = None
        self._failure: Problem | None = None
        self._claimed: list[Segment] = []
        self._receiving: set[asyncio.Future[None]] = set()
        self._missing_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come of it."""
        return self._failure is not None

    def follow(self, other: Gathering) -> None:
        """Take the place of one that is over: it was an attempt before this one."""
        other._next = self
        other._followed.set()

    @contextmanager
    def attended(self) -> Iterator[Gathering]:
        """Take part in it."""
        self._present += 1
        try:
            yield self
        finally:
            self._present -= 1
            # A segment may still be on its way, and is told then what the others were.
            asyncio.get_running_loop().call_later(REMEMBERED_S, self._leave)

    def _leave(self) -> None:
        if not self._present:
            self._forget(self)

    @contextmanager
    def led(self) -> Iterator[None]:
        """Lead it: what this ends with, the others are told. Raises: StepInFlight when another leads."""
        if self._led.is_set():
            raise StepInFlight("A push with this Idempotency-Key is on its way; ask again in a second.")
        self._led.set()
        with self._told():
            yield
        self._fail(_incomplete("The push has ended"))

    @asynccontextmanager
    async def received(self, body: GatheredBody, segment: Segment) -> AsyncIterator[None]:
        """Let segments be received into ``body``; behind this all have come, and nobody writes there any more.

        Args:
          segment: the leading one, which is received inside.

        Raises: SegmentsIncomplete, and what the others raise.
        """
        self._claimed.append(segment)
        self._missing_bytes = segment.total - segment.stop
        self._body = body
        self._decided.set()
        try:
            with self._told():
                yield
                await self._others()
        finally:
            self._body = None
            for receiving in self._receiving:
                receiving.cancel()
            await asyncio.gather(*self._receiving, return_exceptions=True)

    async def _others(self) -> None:
        while self._missing_bytes and self._failure is None:
            self._changed.clear()
            try:
                # Whoever receives has an idle timeout of its own.
                async with asyncio.timeout(None if self._receiving else self._idle_timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                raise _incomplete(f"{self._missing_bytes} bytes of the body did not come") from None
        if self._failure is not None:
            raise self._failure

    async def bring(self, segment: Segment, receive: Receive) -> None:
        """Receive a segment that does not lead, once the one that does says where.

        Raises: SegmentMisplaced, SegmentsIncomplete, or what the leading one is refused for.
        """
        if self.is_over:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._followed.wait(), REMEMBERED_S)
        if self._next is not None:
            with self._next.attended() as attempt:
                await attempt.bring(segment, receive)
            return
        body = await self._place()
        self._claim(segment)
        receiving = asyncio.ensure_future(receive(body))
        self._receiving.add(receiving)
        receiving.add_done_callback(partial(self._ended, segment))
        try:
            await asyncio.wait([receiving])
        finally:
            receiving.cancel()
        if receiving.cancelled():
            raise self._failure or _incomplete("The push has ended")
        receiving.result()

    async def _place(self) -> GatheredBody:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                await self._led.wait()
        except TimeoutError:
            raise _incomplete("The segment that begins the body did not come") from None
        await self._decided.wait()
        if self._failure is not None or self._body is None:
            raise self._failure or _incomplete("All of the body has come already")
        return self._body

    def _claim(self, segment: Segment) -> None:
        total = self._claimed[0].total
        if segment.total != total:
            raise SegmentMisplaced(f"The body has {total} bytes, not {segment.total}.", total=total)
        if any(segment.start < other.stop and other.start < segment.stop for other in self._claimed):
            raise SegmentMisplaced(
                f"Bytes {segment.start} to {segment.stop - 1}, or some of them, come in another segment.", total=total
            )
        self._claimed.append(segment)

    def _ended(self, segment: Segment, receiving: asyncio.Future[None]) -> None:
        self._receiving.discard(receiving)
        error = None if receiving.cancelled() else receiving.exception()
        if receiving.cancelled() or error is not None:
            lost = _incomplete(f"Bytes {segment.start} to {segment.stop - 1} did not all come")
            self._fail(error if isinstance(error, Problem) else lost)
        else:
            self._missing_bytes -= segment.stop - segment.start
        self._changed.set()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What is raised inside ends it for all."""
        try:
            yield
        except BaseException as error:
            lost = _incomplete("The segment that begins the body did not all come")
            self._fail(error if isinstance(error, Problem) else lost)
            raise

    def _fail(self, failure: Problem) -> None:
        self._failure = self._failure or failure
        self._decided.set()
        self._changed.set()


class Segments:
    """The gatherings of one session."""

    def __init__(self) -> None:
        self._by_key: dict[str, Gathering] = {}

    def meeting(self, key: str, idle_timeout_s: float, *, leads: bool) -> AbstractContextManager[Gathering]:
        """Where the segments of the push of this key meet.

        Args:
          leads: it is the leading one that comes; a push that is over is followed by another then.
        """
        before = self._by_key.get(key)
        if before is not None and not (leads and before.is_over):
            return before.attended()
        gathering = self._by_key[key] = Gathering(idle_timeout_s, partial(self._forget, key))
        if before is not None:
            gathering.follow(before)
        return gathering.attended()

    def _forget(self, key: str, gathering: Gathering) -> None:
        if self._by_key.get(key) is gathering:
            del self._by_key[key]


def _incomplete(what: str) -> SegmentsIncomplete:
    return SegmentsIncomplete(
        f"{what}. Send the whole body again under the same key, in one piece or in segments: it counts once."
    )
