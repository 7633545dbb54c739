"""What history is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from optimd_service.history.models import EventRecord, SessionRecord, StepRecord, SupersededStepRecord
from optimd_service.types import EventRow, Receipt, SessionRow, StepRow


async def session(connection: AsyncConnection, session_id: str) -> SessionRow | None:
    row = (await connection.execute(_SESSIONS.where(SessionRecord.id == session_id))).one_or_none()
    return None if row is None else _session(row)


async def sessions(
    connection: AsyncConnection, *, after: str | None, limit: int, status: str | None
) -> list[SessionRow]:
    query = _SESSIONS.order_by(SessionRecord.id).limit(limit)
    if after is not None:
        query = query.where(SessionRecord.id > after)
    if status is not None:
        query = query.where(SessionRecord.status == status)
    return [_session(row) for row in await connection.execute(query)]


async def steps(connection: AsyncConnection, session_id: str, *, after: int, limit: int) -> list[StepRow]:
    query = _STEPS.where(StepRecord.session_id == session_id, StepRecord.step > after)
    return [_step(row) for row in await connection.execute(query.order_by(StepRecord.step).limit(limit))]


async def superseded_steps(
    connection: AsyncConnection, session_id: str, *, after: int, limit: int
) -> list[tuple[int, StepRow]]:
    query = _SUPERSEDED.where(SupersededStepRecord.session_id == session_id, SupersededStepRecord.id > after)
    rows = await connection.execute(query.order_by(SupersededStepRecord.id).limit(limit))
    return [(row.id, _step(row)) for row in rows]


async def one_step(connection: AsyncConnection, session_id: str, step: int) -> StepRow | None:
    query = _STEPS.where(StepRecord.session_id == session_id, StepRecord.step == step)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _step(row)


async def newest_steps(connection: AsyncConnection, session_ids: Sequence[str]) -> dict[str, int]:
    rows = await connection.execute(select(SessionRecord.id, NEWEST_STEP).where(SessionRecord.id.in_(session_ids)))
    return {row[0]: row[1] for row in rows}


async def events(connection: AsyncConnection, session_id: str, *, after: int, limit: int) -> list[EventRow]:
    query = _EVENTS.where(EventRecord.session_id == session_id, EventRecord.id > after)
    return [_event(row) for row in await connection.execute(query.order_by(EventRecord.id).limit(limit))]


# One look at the end of the primary key's index; grouping by session would read every step there is.
NEWEST_STEP = func.coalesce(
    select(func.max(StepRecord.step)).where(StepRecord.session_id == SessionRecord.id).scalar_subquery(), 0
)
"""The newest recorded step of the session that a query is about; 0 before the first."""

_SESSIONS: Select[Any] = select(SessionRecord.__table__)
_STEPS: Select[Any] = select(StepRecord.__table__)
# A session may have gone back to a step that it had left.
_SUPERSEDED: Select[Any] = select(SupersededStepRecord.__table__).where(
    ~exists().where(
        StepRecord.session_id == SupersededStepRecord.session_id,
        StepRecord.step == SupersededStepRecord.step,
        StepRecord.committed_at == SupersededStepRecord.committed_at,
    )
)
_EVENTS: Select[Any] = select(EventRecord.__table__)


def _session(row: Row[Any]) -> SessionRow:
    return SessionRow(row.id, row.name, row.optimizer, row.spec, row.created_at, row.status)


def _step(row: Row[Any]) -> StepRow:
    receipt = Receipt(
        session=row.session_id,
        step=row.step,
        base_step=row.base_step,
        outcome=row.outcome,
        lr=row.lr,
        loss=row.loss,
        grad_norm=row.grad_norm,
        clip_scale=row.clip_scale,
        update_norm=row.update_norm,
        param_norm=row.param_norm,
        durable_step=row.durable_step,
        loss_scale=row.loss_scale,
    )
    return StepRow(receipt, row.committed_at, row.num_examples, row.worker, row.hyperparameters)


def _event(row: Row[Any]) -> EventRow:
    return EventRow(row.session_id, row.kind, row.step, row.detail, row.at, row.id)
