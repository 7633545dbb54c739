"""Rows into the database: a batch, a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine

from optimd_service.history.models import EventRecord, SessionRecord, StepRecord
from optimd_service.history.queries import NEWEST_STEP
from optimd_service.types import EventRow, SessionRow, StepRow


@dataclass(frozen=True, slots=True)
class Created:
    session: SessionRow


@dataclass(frozen=True, slots=True)
class Changed:
    session: SessionRow


@dataclass(frozen=True, slots=True)
class Deleted:
    session_id: str


Row = Created | Changed | StepRow | EventRow | Deleted
Values = dict[str, Any]


class RowRefusedError(Exception):
    """A row of the batch can never be written; the others of the batch were not written either."""


class Writer:
    """Writes batches of rows.

    A session or a step that is already there stays as it is, so rows may be given again.
    """

    def __init__(self, engine: AsyncEngine, *, server_id: str) -> None:
        self._engine = engine
        self._server_id = server_id
        insert_new = _INSERT_NEW[engine.dialect.name]
        # In the order that foreign keys ask for.
        self._statements: dict[type[Row], tuple[Executable, Callable[[Any], Values]]] = {
            Created: (insert_new(SessionRecord), self._created_values),
            Changed: (_CHANGE_SESSION, _changed_values),
            StepRow: (insert_new(StepRecord), _step_values),
            EventRow: (insert(EventRecord), _event_values),
            Deleted: (_DELETE_SESSION, _deleted_values),
        }

    async def write(self, rows: Sequence[Row]) -> None:
        """Write all rows or none, in one transaction.

        Raises: RowRefusedError; whatever else the driver raises when the database is at fault.
        """
        by_kind: dict[type[Row], list[Row]] = defaultdict(list)
        for row in rows:
            by_kind[type(row)].append(row)
        try:
            async with self._engine.begin() as connection:
                for kind, (statement, values) in self._statements.items():
                    if by_kind[kind]:
                        await connection.execute(statement, [values(row) for row in by_kind[kind]])
        except Exception as error:
            if _is_rows_fault(error):
                raise RowRefusedError(str(getattr(error, "orig", error))) from error
            raise

    async def mark_lost(self) -> None:
        """Mark this server's sessions that are still called live, each with an event at its newest recorded step."""
        mine = (SessionRecord.server_id == self._server_id) & (SessionRecord.status == "live")
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


# "Insert, or leave what is there" is the one thing that SQL has no common form for.
_INSERT_NEW: Mapping[str, Callable[[type[SessionRecord | StepRecord]], Executable]] = {
    "sqlite": lambda record: sqlite.insert(record).on_conflict_do_nothing(),
    "postgresql": lambda record: postgresql.insert(record).on_conflict_do_nothing(),
}
_CHANGE_SESSION = (
    update(SessionRecord)
    .where(SessionRecord.id == bindparam("session_id"))
    .values(name=bindparam("new_name"), optimizer=bindparam("new_optimizer"), spec=bindparam("new_spec"))
)
_DELETE_SESSION = delete(SessionRecord).where(SessionRecord.id == bindparam("session_id"))


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
    if isinstance(error, DBAPIError):
        refused = isinstance(error, IntegrityError | DataError | InterfaceError)
        return refused and not error.connection_invalidated
    return isinstance(error, StatementError | TypeError | ValueError | ArithmeticError)
