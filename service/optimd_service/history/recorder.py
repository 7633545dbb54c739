"""Rows wait here, and are written in batches behind the hot path."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from optimd_service.history.writes import Row, RowRefusedError

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0

logger = logging.getLogger("optimd.history")


@dataclass(frozen=True, slots=True)
class HistoryHealth:
    """How recording stands.

    Attributes:
      pending: rows that wait to be written.
      dropped: rows given up since the start: beyond ``max_pending``, refused by the database, or left at the end.
      failing: the last attempt to write failed.
    """

    pending: int
    dropped: int
    failing: bool


class Recorder:
    """A queue that any thread may put rows into, and the one task that writes them, in order.

    `put` and `offer` cost an append. `run`, `written` and `finish` belong to the event loop that writes.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Row]], Awaitable[None]],
        *,
        flush_interval_s: float,
        batch_rows: int,
        max_pending: int,
    ) -> None:
        self._write_all = write
        self._flush_interval_s = flush_interval_s
        self._batch_rows = batch_rows
        self._max_pending = max_pending
        self._queue: deque[Row] = deque()
        self._taken = 0
        self._done = 0
        self._dropped = 0
        self._counting = threading.Lock()
        self._overflowing = False
        self._failing = False
        self._finishing = False
        self._asleep = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first_row = asyncio.Event()
        self._hurry = asyncio.Event()
        self._progress = asyncio.Condition()

    def offer(self, row: Row) -> None:
        """Queue a row, or drop it when ``max_pending`` rows wait already."""
        if len(self._queue) < self._max_pending:
            self.put(row)
        else:
            self._overflow()

    def put(self, row: Row) -> None:
        """Queue a row that others depend on, however many wait."""
        self._queue.append(row)
        # The writer declares itself asleep before it looks at the queue for the last time, so one of the two sees
        # the other.
        if self._asleep:
            self._wake()

    def queued(self) -> int:
        """How many rows were put here since the start; a few more while rows are taken."""
        return self._taken + len(self._queue)

    @property
    def done(self) -> int:
        """How many of them are written or dropped, in order."""
        return self._done

    def health(self) -> HistoryHealth:
        done = self._done
        return HistoryHealth(len(self._queue) + self._taken - done, self._dropped, self._failing)

    async def run(self) -> None:
        """Write what is queued until `finish`, and then what is left."""
        self._loop = asyncio.get_running_loop()
        while self._queue or not self._finishing:
            await self._gather()
            if rows := self._take():
                await self._write(rows)

    async def written(self) -> None:
        """Wait until every row queued before the call is written or dropped, without the usual gathering."""
        target = self.queued()
        if self._done < target:
            self._hurry.set()
        async with self._progress:
            await self._progress.wait_for(lambda: self._done >= target)

    def finish(self) -> None:
        """Let `run` end when the queue is empty."""
        self._finishing = True
        self._hurry.set()
        self._first_row.set()

    def abandon(self) -> None:
        """Count what still waits as dropped, because `run` was cut short."""
        left = self.health().pending
        if left:
            logger.error("history ends with %d rows that could not be written", left)
        self._queue.clear()
        self._done = self._taken
        self._count_dropped(left)

    async def _gather(self) -> None:
        """Wait for a first row, and a moment for others to join it."""
        self._first_row.clear()
        self._asleep = True
        if not (self._queue or self._finishing):
            await self._first_row.wait()
        self._asleep = False
        if len(self._queue) < self._batch_rows:
            await self._pause(self._flush_interval_s)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def _take(self) -> list[Row]:
        count = min(len(self._queue), self._batch_rows)
        # Counted before they leave the queue, and `health` reads the other end first: seen from another thread, a row
        # may count twice for a moment, but never not at all.
        self._taken += count
        rows = [self._queue.popleft() for _ in range(count)]
        if not self._queue:
            self._overflowing = False
            if not self._finishing:
                self._hurry.clear()
        return rows

    async def _write(self, rows: Sequence[Row]) -> None:
        """Write rows; where one is refused, halve them until it stands alone, and drop it."""
        refusal = await self._persist(rows)
        if refusal and len(rows) > 1:
            half = len(rows) // 2
            await self._write(rows[:half])
            await self._write(rows[half:])
            return
        if refusal:
            logger.error("the history database refuses a row, which is dropped: %.200r: %s", rows[0], refusal)
            self._count_dropped(1)
        self._done += len(rows)
        async with self._progress:
            self._progress.notify_all()

    async def _persist(self, rows: Sequence[Row]) -> RowRefusedError | None:
        """Try until the database takes the rows, or refuses one of them."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                await self._write_all(rows)
            except RowRefusedError as refusal:
                self._recovered()
                return refusal
            except Exception as error:  # noqa: BLE001 - recording outlives whatever a driver can raise
                self._failed(error)
            else:
                self._recovered()
                return None
            # A reader that comes now is worth an attempt at once.
            self._hurry.clear()
            await self._pause(delay_s)
            delay_s = min(2 * delay_s, LAST_RETRY_S)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            reason = str(getattr(error, "orig", error)) or "the database does not answer"
            logger.error("history cannot be written; rows wait: %s", reason)
        self._failing = True

    def _recovered(self) -> None:
        if self._failing:
            logger.info("history is written again")
        self._failing = False

    def _wake(self) -> None:
        self._asleep = False
        # The loop may have closed since; then there is nobody left to wake.
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._first_row.set)

    def _overflow(self) -> None:
        if not self._overflowing:
            self._overflowing = True
            logger.error("history has %d rows waiting; newer rows are dropped", self._max_pending)
        self._count_dropped(1)

    def _count_dropped(self, rows: int) -> None:
        with self._counting:
            self._dropped += rows
