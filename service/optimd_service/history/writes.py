"""Rows into the database: a batch, a transaction."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Insert, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from optimd_service.history import sqlite_steps
from optimd_service.history.models import Base, EventRecord, SessionRecord, StepRecord, SupersededStepRecord
from optimd_service.history.queries import NEWEST_STEP
from optimd_service.types import EventRow, SessionRow, StepRow

WRITE_TIMEOUT_S = 10.0  # after which a database that says nothing, such as one behind a cut cable, counts as away
DELETE_TIMEOUT_S = 600.0  # a session's steps go with it, and there may be a hundred million
# SQLSTATE's classes: data exception, integrity constraint violation, program limit exceeded.
ROWS_FAULTS = {"22", "23", "54"}


@dataclass(frozen=True, slots=True)
class Created:
    session: SessionRow


@dataclass(frozen=True, slots=True)
class Changed:
    session: SessionRow


@dataclass(frozen=True, slots=True)
class Deleted:
    session_id: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """Steps behind ``step``, those alone that were committed until then, are no longer what their session stands on."""

    session_id: str
    step: int
    until: datetime | None


Row = Created | Changed | StepRow | EventRow | Superseded | Deleted
Values = dict[str, Any]
Way = Callable[[AsyncConnection, Sequence[Any]], Awaitable[None]]
"""Writes rows of one kind, in a transaction of the caller's."""


class RowRefusedError(Exception):
    """A row of the batch can never be written; the others of the batch were not written either."""


class Writer:
    """Writes batches of rows.

    A row that is already there stays as it is, so rows may be given again: as they are when a commit was not answered.
    """

    def __init__(self, engine: AsyncEngine, *, server_id: str) -> None:
        self._engine = engine
        self._server_id = server_id
        insert_new = _INSERT_NEW[engine.dialect.name]
        # In the order that foreign keys ask for.
        self._ways: dict[type[Row], Way] = {
            Created: _each(insert_new(SessionRecord), self._created_values),
            Changed: _each(_CHANGE_SESSION, _changed_values),
            StepRow: _each(insert_new(StepRecord), _step_values),
            EventRow: _each(insert_new(EventRecord), _event_values),
            Superseded: _superseding(insert_new(SupersededStepRecord)),
            Deleted: _each(_DELETE_SESSION, _deleted_values),
        }
        if engine.dialect.name == "sqlite":
            self._ways[StepRow] = sqlite_steps.insert_new

    async def write(self, rows: Sequence[Row]) -> None:
        """Write all rows or none, in one transaction.

        Raises: RowRefusedError; whatever else the driver raises when the database is at fault.
        """
        patience_s = DELETE_TIMEOUT_S if any(type(row) in _SLOW for row in rows) else WRITE_TIMEOUT_S
        try:
            async with asyncio.timeout(patience_s), self._engine.begin() as connection:
                for stretch in _stretches(rows):
                    await self._write(connection, stretch)
        except Exception as error:
            if _is_rows_fault(error):
                raise RowRefusedError(str(getattr(error, "orig", error))) from error
            raise

    async def _write(self, connection: AsyncConnection, rows: Sequence[Row]) -> None:
        by_kind: dict[type[Row], list[Row]] = defaultdict(list)
        for row in rows:
            by_kind[type(row)].append(row)
        for kind, write in self._ways.items():
            if by_kind[kind]:
                await write(connection, by_kind[kind])

    async def mark_lost(self, kept: Collection[str]) -> None:
        """Mark this server's sessions that are still called live, each with an event at its newest recorded step.

        Args:
          kept: those that have outlived their process.
        """
        mine = (SessionRecord.server_id == self._server_id) & (SessionRecord.status == "live")
        mine &= SessionRecord.id.not_in(kept)
        mine &= SessionRecord.spec["storage"]["backend"].as_string().is_distinct_from("redis")
        async with self._engine.begin() as connection:
            lost = (await connection.execute(select(SessionRecord.id, NEWEST_STEP).where(mine))).all()
            if lost:
                events = [EventRow(session_id, "lost", step, {}) for session_id, step in lost]
                await connection.execute(insert(EventRecord), [_event_values(event) for event in events])
                await connection.execute(update(SessionRecord).where(mine).values(status="lost"))

    def _created_values(self, row: Created) -> Values:
        session = row.session
        return {
            "id": session.id,
            "server_id": self._server_id,
            "status": session.status,
            "name": session.name,
            "optimizer": session.optimizer,
            "spec": session.spec,
            "created_at": session.created_at,
        }


_SLOW = {Deleted, Superseded}


def _stretches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows whose kinds may be written one after the other: steps may come again behind those that were superseded."""
    start = 0
    for number, row in enumerate(rows, 1):
        if isinstance(row, Superseded):
            yield rows[start:number]
            start = number
    if start < len(rows):
        yield rows[start:]


def _superseding(insert_new: Insert) -> Way:
    """Moves steps to where they are out of sight; one that is there already stays as it is."""
    names = [column.name for column in StepRecord.__table__.columns]

    async def supersede(connection: AsyncConnection, rows: Sequence[Superseded]) -> None:
        for row in rows:
            behind = (StepRecord.session_id == row.session_id) & (StepRecord.step > row.step)
            if row.until is not None:
                behind &= StepRecord.committed_at <= row.until
            moved = select(*(StepRecord.__table__.c[name] for name in names)).where(behind).order_by(StepRecord.step)
            await connection.execute(insert_new.from_select(names, moved))
            await connection.execute(delete(StepRecord).where(behind))

    return supersede


# "Insert, or leave what is there" is the one thing that SQL has no common form for.
_INSERT_NEW: Mapping[str, Callable[[type[Base]], Insert]] = {
    "sqlite": lambda record: sqlite.insert(record).on_conflict_do_nothing(),
    "postgresql": lambda record: postgresql.insert(record).on_conflict_do_nothing(),
}
_CHANGE_SESSION = (
    update(SessionRecord)
    .where(SessionRecord.id == bindparam("session_id"))
    .values(name=bindparam("new_name"), optimizer=bindparam("new_optimizer"), spec=bindparam("new_spec"))
)
_DELETE_SESSION = delete(SessionRecord).where(SessionRecord.id == bindparam("session_id"))


def _each(statement: Executable, values: Callable[[Any], Values]) -> Way:
    async def write(connection: AsyncConnection, rows: Sequence[Any]) -> None:
        await connection.execute(statement, [values(row) for row in rows])

    return write


def _changed_values(row: Changed) -> Values:
    session = row.session
    return {
        "session_id": session.id,
        "new_name": session.name,
        "new_optimizer": session.optimizer,
        "new_spec": session.spec,
    }


def _deleted_values(row: Deleted) -> Values:
    return {"session_id": row.session_id}


def _step_values(row: StepRow) -> Values:
    receipt = row.receipt
    return {
        "session_id": receipt.session,
        "step": receipt.step,
        "base_step": receipt.base_step,
        "outcome": receipt.outcome,
        "lr": receipt.lr,
        "loss": receipt.loss,
        "grad_norm": receipt.grad_norm,
        "clip_scale": receipt.clip_scale,
        "update_norm": receipt.update_norm,
        "param_norm": receipt.param_norm,
        "durable_step": receipt.durable_step,
        "loss_scale": receipt.loss_scale,
        "num_examples": row.num_examples,
        "worker": row.worker,
        "hyperparameters": row.hyperparameters,
        "committed_at": row.committed_at,
    }


def _event_values(row: EventRow) -> Values:
    return {"session_id": row.session, "kind": row.kind, "step": row.step, "detail": row.detail, "at": row.at}


def _is_rows_fault(error: Exception) -> bool:
    """Whether the same rows would fail for ever; otherwise the database is at fault, and may recover."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, StatementError | TypeError | ValueError | ArithmeticError)
    if error.connection_invalidated:
        return False
    if sqlstate := getattr(error.orig, "sqlstate", None):
        return sqlstate[:2] in ROWS_FAULTS
    return isinstance(error, IntegrityError | DataError) or _is_unsendable(error)


def _is_unsendable(error: DBAPIError) -> bool:
    """Whether the driver cannot write a value; asyncpg, which gives a cause, says the same of a busy connection."""
    cause = getattr(error.orig, "__cause__", None)
    return isinstance(error, InterfaceError) and (cause is None or isinstance(cause, ValueError))
