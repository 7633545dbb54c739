from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from history_rows import NOON, Opened, event_row, session_row, step_row

from history_database import ask
from optimd_service.history import History

ALL = {"after": 0, "limit": 10_000}


async def test_a_session_is_read_as_it_was_recorded(history: History) -> None:
    row = session_row("a", spec={"optimizer": {"name": "adamw", "lr": 0.001, "betas": [0.9, 0.999]}})
    history.session_created(row)
    assert await history.session("a") == row
    assert await history.session("b") is None


async def test_a_step_is_read_as_it_was_recorded(history: History) -> None:
    overrides = {"lr": 0.1, "groups": {"no_decay": {"betas": [0.9, 0.99], "amsgrad": None}}}
    full = step_row("a", 1, num_examples=64, worker="w" * 200, hyperparameters=overrides)
    bare = step_row("a", 2**62)
    history.session_created(session_row("a"))
    history.step(full)
    history.step(bare)
    assert await history.steps("a", **ALL) == [full, bare]
    assert await history.one_step("a", 1) == full
    assert await history.one_step("a", 2) is None


async def test_a_long_description_is_read_as_it_was_recorded(history: History) -> None:
    row = session_row("a", spec={"tensors": [{"name": f"layers.{i}.weight", "shape": [i, 10]} for i in range(100_000)]})
    history.session_created(row)
    assert await history.session("a") == row


async def test_times_are_given_back_aware_and_in_utc(history: History) -> None:
    history.session_created(session_row("a"))
    history.step(step_row("a", 1, committed_at=datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))))
    step = await history.one_step("a", 1)
    assert step is not None
    assert step.committed_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert step.committed_at.tzinfo is UTC


async def test_a_change_keeps_when_and_by_whom_a_session_was_created(history: History) -> None:
    history.session_created(session_row("a"))
    changed = replace(session_row("a", name="letters", spec={"seed": 1}), optimizer="lion")
    history.session_changed(replace(changed, created_at=datetime.now(UTC)))
    assert await history.session("a") == changed


async def test_events_are_numbered_in_the_order_recorded(history: History) -> None:
    history.session_created(session_row("a"))
    for kind in ("created", "changed", "params_put"):
        history.event(event_row("a", kind))
    first, second, third = await history.events("a", **ALL)
    assert [first.kind, second.kind, third.kind] == ["created", "changed", "params_put"]
    assert first == replace(event_row("a", "created"), id=first.id)
    assert first.at == NOON
    assert first.id is not None
    assert await history.events("a", after=first.id, limit=1) == [second]


async def test_a_read_sees_every_row_recorded_before_it(opened: Opened) -> None:
    async with opened(flush_interval_s=3600.0) as history:
        history.session_created(session_row("a"))
        for n in range(1, 4):
            history.step(step_row("a", n))
            assert [row.receipt.step for row in await history.steps("a", **ALL)] == list(range(1, n + 1))


async def test_steps_are_paged_by_the_last_step_seen(history: History) -> None:
    history.session_created(session_row("a"))
    for n in range(1, 6):
        history.step(step_row("a", n))
    pages = [await history.steps("a", after=after, limit=2) for after in (0, 2, 4, 5)]
    assert [[row.receipt.step for row in page] for page in pages] == [[1, 2], [3, 4], [5], []]


async def test_sessions_are_paged_by_id_and_filtered_by_status(opened: Opened) -> None:
    async with opened("gone") as history:
        history.session_created(session_row("b"))
    async with opened("gone"), opened() as history:
        for session in ("c", "a", "d"):
            history.session_created(session_row(session))

        async def ids(after: str | None, limit: int, status: str | None) -> list[str]:
            return [row.id for row in await history.sessions(after=after, limit=limit, status=status)]

        assert await ids(None, 2, None) == ["a", "b"]
        assert await ids("b", 2, None) == ["c", "d"]
        assert await ids(None, 9, "live") == ["a", "c", "d"]
        assert await ids("a", 9, "lost") == ["b"]


async def test_deleting_a_session_takes_its_own_rows_alone(history: History, database: Path) -> None:
    for session in ("a", "b"):
        history.session_created(session_row(session))
        history.step(step_row(session, 1))
        history.event(event_row(session, "created"))
    await history.delete_session("a")
    assert await history.session("a") is None
    assert ask(database, "SELECT session_id FROM steps") == ["b"]
    assert ask(database, "SELECT session_id FROM events") == ["b"]


async def test_a_step_recorded_after_its_session_was_deleted_stays_away(history: History) -> None:
    history.session_created(session_row("a"))
    await history.delete_session("a")
    history.step(step_row("a", 1))
    assert await history.steps("a", **ALL) == []
    assert history.health().dropped == 1


async def test_a_restart_marks_the_servers_own_sessions_lost_once(opened: Opened) -> None:
    async with opened("here") as here, opened("there") as there:
        for history, session in ((here, "a"), (here, "b"), (there, "c")):
            history.session_created(session_row(session))
        for n in (1, 2, 3):
            here.step(step_row("a", n))
    for _ in range(2):
        async with opened("here") as history:
            rows = await history.sessions(after=None, limit=9, status=None)
            assert [(row.id, row.status) for row in rows] == [("a", "lost"), ("b", "lost"), ("c", "live")]
            for session, newest in (("a", 3), ("b", 0)):
                (event,) = await history.events(session, **ALL)
                assert (event.kind, event.step) == ("lost", newest)
            assert await history.events("c", **ALL) == []


async def test_rows_that_wait_at_the_end_are_there_after_a_restart(opened: Opened) -> None:
    async with opened(flush_interval_s=3600.0) as history:
        history.session_created(session_row("a"))
        history.step(step_row("a", 1))
    async with opened() as history:
        assert await history.steps("a", **ALL) == [step_row("a", 1)]


async def test_threads_record_at_once_and_nothing_is_missing(opened: Opened) -> None:
    async with opened(flush_interval_s=0.001, batch_rows=50) as history:

        def train(session: str) -> None:
            history.session_created(session_row(session))
            for n in range(1, 501):
                history.step(step_row(session, n))

        threads = [threading.Thread(target=train, args=(f"s{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(8):
            assert [row.receipt.step for row in await history.steps(f"s{i}", **ALL)] == list(range(1, 501))
        assert history.health().dropped == 0
