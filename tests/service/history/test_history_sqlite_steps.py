"""Step rows that are written many in one call."""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest
from history_rows import NOON, Opened, event_row, session_row, step_row
from sqlalchemy import event

from optimd_service.history.sqlite_steps import MOST_ROWS

ALL = {"after": 0, "limit": 10_000}


@pytest.mark.parametrize("count", [1, 2, 3, 100, MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1, 2500])
async def test_a_batch_of_any_size_is_written_row_by_row(opened: Opened, count: int) -> None:
    rows = [step_row("a", n, worker=f"w{n}" if n % 2 else None) for n in range(1, count + 1)]
    async with opened(batch_rows=5000) as history:
        history.session_created(session_row("a"))
        for row in rows:
            history.step(row)
        assert await history.steps("a", **ALL) == rows


async def test_a_batch_is_few_calls_and_few_statements(opened: Opened) -> None:
    said: list[str] = []
    async with opened(batch_rows=5000) as history:
        event.listen(history._engine.sync_engine, "before_cursor_execute", lambda *args: said.append(args[2]))
        history.session_created(session_row("a"))
        for count in (700, 900, 1000):
            first = len(await history.steps("a", **ALL)) + 1
            for n in range(first, first + count):
                history.step(step_row("a", n))
        await history.session("a")
    written = [statement for statement in said if statement.startswith("INSERT INTO steps")]
    assert len(written) < 20
    assert len(set(written)) < 12


async def test_what_a_step_says_is_kept_as_it_was_said(opened: Opened) -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    said = {"worker": "wörker 'x' %s ?", "num_examples": 7, "hyperparameters": {"lr": 0.1, "groups": {"é": [1, None]}}}
    async with opened() as history:
        history.session_created(session_row("a"))
        history.event(event_row("a", "created"))
        history.step(step_row("a", 1, committed_at=east, **said))
        assert await history.steps("a", **ALL) == [step_row("a", 1, **said)]
