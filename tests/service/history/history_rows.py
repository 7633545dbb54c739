"""Rows as the session room records them, and how a test opens a history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from optimd_service.history import History
from optimd_service.types import EventRow, Receipt, SessionRow, StepRow

Opened = Callable[..., AbstractAsyncContextManager[History]]
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def session_row(session: str, *, name: str = "digits", spec: Mapping[str, Any] | None = None) -> SessionRow:
    return SessionRow(session, name, "adamw", spec or {"seed": 0}, NOON)


def step_row(session: str, step: int, **said: Any) -> StepRow:
    receipt = Receipt(
        session=session,
        step=step,
        base_step=step - 1,
        outcome="applied",
        lr=0.001,
        loss=0.1 * step,
        grad_norm=None,
        clip_scale=0.5,
        update_norm=1 / 3,
        param_norm=2.0,
        durable_step=0,
    )
    return StepRow(receipt, **{"committed_at": NOON, **said})


def event_row(session: str, kind: str, step: int = 0) -> EventRow:
    return EventRow(session, kind, step, {"lr": [0.1, 0.01]}, NOON)
