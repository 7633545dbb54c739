"""The history of sessions: what is recorded, and what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from optimd_service.errors import HistoryUnavailable
from optimd_service.history import queries
from optimd_service.history.engine import open_engine
from optimd_service.history.recorder import HistoryHealth, Recorder
from optimd_service.history.thread import LoopThread
from optimd_service.history.writes import Changed, Created, Deleted, Superseded, Writer
from optimd_service.types import EventRow, SessionRow, StepRow

T = TypeVar("T")

# Shorter than the five seconds after which many HTTP clients stop waiting: they would never learn why.
ANSWER_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 10.0


class History:
    """Records sessions, steps and events, and answers questions about them.

    All SQL runs on this object's own thread, so neither the database nor SQLAlchemy's work holds up the service's event
    loop. What records (`session_created`, `session_changed`, `step`, `event`) may be called from any thread, costs an
    append to a queue, and never raises; rows are written in batches behind it, and wait while the database is away.
    What reads sees every row recorded before it.

    Args:
      database_url: as `open_engine` reads it; the schema must be current (see `upgrade`).
      server_id: who holds these sessions' weights; stays the same when the server is started again.
      flush_interval_s: how long a row waits for others to be written with it.
      batch_rows: most rows of one transaction.
      max_pending: steps and events that may wait; newer ones are dropped, and counted in `health`.
    """

    def __init__(
        self,
        database_url: str,
        *,
        server_id: str,
        flush_interval_s: float = 0.2,
        batch_rows: int = 1000,
        max_pending: int = 1_000_000,
    ) -> None:
        self._engine = open_engine(database_url)
        self._writer = Writer(self._engine, server_id=server_id)
        self._recorder = Recorder(
            self._writer.write, flush_interval_s=flush_interval_s, batch_rows=batch_rows, max_pending=max_pending
        )
        self._thread = LoopThread("optimd-history")

    async def start(self, kept: Collection[str] = ()) -> None:
        """Open the database, and mark the sessions that an earlier run of this server held as lost, but for ``kept``.

        Raises: HistoryUnavailable.
        """
        self._thread.start()
        try:
            await self._answer(partial(self._open, kept))
        except BaseException:
            await self._thread.run(self._engine.dispose)
            await self._thread.stop()
            raise

    async def stop(self) -> None:
        """Write what waits, for at most STOP_TIMEOUT_S, and close the database; nothing recorded later is kept."""
        try:
            await self._thread.run(self._close)
        finally:
            await self._thread.stop()

    def session_created(self, row: SessionRow) -> None:
        self._recorder.put(Created(row))

    def session_changed(self, row: SessionRow) -> None:
        """Record the session's name, optimizer and spec as they now are."""
        self._recorder.put(Changed(row))

    def step(self, row: StepRow) -> None:
        """Record a committed step; one that is recorded already stays as it is."""
        self._recorder.offer(row)

    def event(self, row: EventRow) -> None:
        self._recorder.offer(row)

    def supersede(self, session_id: str, step: int, until: datetime | None = None) -> None:
        """Say that a session went back to ``step``; rows behind it go out of sight, whatever was recorded there.

        Args:
          until: when it did; what was committed later counts. Without it, all that was recorded until now, whenever
            its clock says that it was committed.
        """
        self._recorder.put(Superseded(session_id, step, until))

    def recorded(self) -> int:
        """How many rows have been recorded so far, by whomever."""
        return self._recorder.queued()

    def is_written(self, count: int) -> bool:
        """Whether the first ``count`` of the rows recorded are in the database, or will never be."""
        return self._recorder.done >= count

    def health(self) -> HistoryHealth:
        return self._recorder.health()

    async def delete_session(self, session_id: str) -> None:
        """Remove the session, its steps and its events, after everything recorded before.

        Raises: HistoryUnavailable; it is then removed once the database is back.
        """
        self._recorder.put(Deleted(session_id))
        await self._answer(self._recorder.written)

    async def session(self, session_id: str) -> SessionRow | None:
        return await self._read(partial(queries.session, session_id=session_id))

    async def sessions(self, *, after: str | None, limit: int, status: str | None) -> list[SessionRow]:
        """Sessions with an id beyond ``after``, oldest first; of any status when ``status`` is None."""
        return await self._read(partial(queries.sessions, after=after, limit=limit, status=status))

    async def steps(self, session_id: str, *, after: int, limit: int) -> list[StepRow]:
        """Steps greater than ``after``, ascending."""
        return await self._read(partial(queries.steps, session_id=session_id, after=after, limit=limit))

    async def superseded_steps(self, session_id: str, *, after: int, limit: int) -> list[tuple[int, StepRow]]:
        """Steps that the session no longer stands on, numbered as they went out of sight, beyond ``after``."""
        return await self._read(partial(queries.superseded_steps, session_id=session_id, after=after, limit=limit))

    async def one_step(self, session_id: str, step: int) -> StepRow | None:
        return await self._read(partial(queries.one_step, session_id=session_id, step=step))

    async def newest_steps(self, session_ids: Sequence[str]) -> dict[str, int]:
        """Session id → its newest recorded step, 0 before the first; a session that is not recorded is left out."""
        return await self._read(partial(queries.newest_steps, session_ids=session_ids))

    async def events(self, session_id: str, *, after: int, limit: int) -> list[EventRow]:
        """Events with an id greater than ``after``, in the order recorded."""
        return await self._read(partial(queries.events, session_id=session_id, after=after, limit=limit))

    async def _read(self, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def after_what_waits() -> T:
            await self._recorder.written()
            async with self._engine.connect() as connection:
                return await query(connection)

        return await self._answer(after_what_waits)

    async def _answer(self, question: Callable[[], Awaitable[T]]) -> T:
        """Await ``question()`` on the history's thread, for at most ANSWER_TIMEOUT_S."""

        async def in_time() -> T:
            # Not asyncio.timeout: to cancel a query of a database that hangs takes a driver another two seconds.
            asked = asyncio.ensure_future(question())
            try:
                await asyncio.wait({asked}, timeout=ANSWER_TIMEOUT_S)
                if not asked.done():
                    raise TimeoutError
                return asked.result()
            finally:
                asked.cancel()

        try:
            return await self._thread.run(in_time)
        except (SQLAlchemyError, OSError) as error:  # a TimeoutError is an OSError
            raise HistoryUnavailable("The history database does not answer. Try again in a moment.") from error

    async def _open(self, kept: Collection[str]) -> None:
        await self._writer.mark_lost(kept)
        self._writing = asyncio.create_task(self._recorder.run())

    async def _close(self) -> None:
        self._recorder.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._writing
        self._recorder.abandon()
        await self._engine.dispose()
