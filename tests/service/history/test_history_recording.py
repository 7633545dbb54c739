"""How rows get from the queue into the database: batches, refusals, outages."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from history_rows import Opened, event_row, session_row, step_row
from sqlalchemy import event

import history_database
from history_database import ask, away
from optimd_service.history import History, HistoryHealth, HistoryUnavailable
from optimd_service.history.engine import SQLITE_PRAGMAS
from optimd_service.history.writes import Row

ALL = {"after": 0, "limit": 10_000}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are noticed, and given up on, in a fraction of the usual time."""
    monkeypatch.setitem(SQLITE_PRAGMAS, "busy_timeout", 10)
    monkeypatch.setattr("optimd_service.history.recorder.LAST_RETRY_S", 0.05)
    monkeypatch.setattr("optimd_service.history.history.ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr("optimd_service.history.history.STOP_TIMEOUT_S", 0.5)


async def test_a_thousand_quick_rows_take_a_handful_of_commits(history: History) -> None:
    commits: list[object] = []
    event.listen(history._engine.sync_engine, "commit", commits.append)
    history.session_created(session_row("a"))
    for n in range(1, 1001):
        history.step(step_row("a", n))
    assert len(await history.steps("a", **ALL)) == 1000
    assert 1 <= len(commits) <= 5


async def test_readers_do_not_wait_for_a_writer(history: History, database: Path, on_sqlite: None) -> None:
    history.session_created(session_row("a"))
    assert await history.session("a")
    with away(database):
        assert await history.session("a")


async def test_rows_wait_for_a_database_that_is_away(database: Path, opened: Opened, impatient: None) -> None:
    async with opened() as history:
        with away(database):
            history.session_created(session_row("a"))
            history.step(step_row("a", 1))
            with pytest.raises(HistoryUnavailable):
                await history.session("a")
            assert history.health() == HistoryHealth(pending=2, dropped=0, failing=True)
        assert await history.steps("a", **ALL) == [step_row("a", 1)]
        assert history.health() == HistoryHealth(pending=0, dropped=0, failing=False)


async def test_an_outage_is_logged_once(
    database: Path, opened: Opened, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as history:
        with away(database):
            history.session_created(session_row("a", name="secret"))
            for _ in range(2):
                with pytest.raises(HistoryUnavailable):
                    await history.session("a")
        await history.session("a")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.search("rows wait: .*(database is locked|connection was closed|refused)", record.getMessage())
    assert "secret" not in record.getMessage()


async def test_a_deletion_refused_by_an_outage_is_done_after_it(
    database: Path, opened: Opened, impatient: None
) -> None:
    async with opened() as history:
        history.session_created(session_row("a"))
        assert await history.session("a")
        with away(database), pytest.raises(HistoryUnavailable):
            await history.delete_session("a")
        assert await history.session("a") is None


async def test_stopping_during_an_outage_ends_and_counts_what_is_lost(
    database: Path, opened: Opened, impatient: None
) -> None:
    async with AsyncExitStack() as until_stopped:
        history = await until_stopped.enter_async_context(opened())
        with away(database):
            history.session_created(session_row("a"))
            await until_stopped.aclose()
    assert history.health().pending == 0
    assert history.health().dropped == 1


async def test_starting_without_a_database_says_so(tmp_path: Path) -> None:
    history = History(history_database.missing_url(tmp_path), server_id="here")
    with pytest.raises(HistoryUnavailable):
        await history.start()


@pytest.mark.parametrize(
    "bad",
    [
        step_row("nobody", 1),
        step_row("a", 2**63),
        step_row("a", 501, worker="\ud800"),
        step_row("a", 501, hyperparameters={"lr": object()}),
        event_row("nobody", "changed"),
    ],
    ids=["unknown session", "beyond 64 bits", "not UTF-8", "not JSON", "event of an unknown session"],
)
async def test_a_bad_row_is_dropped_alone(history: History, caplog: pytest.LogCaptureFixture, bad: object) -> None:
    history.session_created(session_row("a"))
    history.event(event_row("a", "created"))
    for n in range(1, 501):
        history.step(step_row("a", n))
        if n == 250:
            history._recorder.offer(bad)  # type: ignore[arg-type]  # of either kind
    assert len(await history.steps("a", **ALL)) == 500
    assert len(await history.events("a", **ALL)) == 1
    assert history.health() == HistoryHealth(pending=0, dropped=1, failing=False)
    assert len(caplog.records) == 1


async def test_a_step_recorded_again_stays_as_it_was(history: History) -> None:
    history.session_created(session_row("a"))
    history.step(step_row("a", 1, worker="first"))
    assert await history.one_step("a", 1)
    history.session_created(session_row("a", name="again"))
    history.step(step_row("a", 1, worker="second"))
    history.step(step_row("a", 2))
    assert await history.steps("a", **ALL) == [step_row("a", 1, worker="first"), step_row("a", 2)]
    assert await history.session("a") == session_row("a")
    assert history.health().dropped == 0


async def test_beyond_max_pending_the_newest_steps_are_dropped(
    database: Path, opened: Opened, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(max_pending=4, batch_rows=1) as history:
        with away(database):
            history.session_created(session_row("a"))
            with pytest.raises(HistoryUnavailable):
                await history.session("a")
            for n in range(1, 11):
                history.step(step_row("a", n))
            history.session_created(session_row("b"))
            assert history.health() == HistoryHealth(pending=6, dropped=6, failing=True)
        assert [row.receipt.step for row in await history.steps("a", **ALL)] == [1, 2, 3, 4]
        assert await history.session("b")
    assert len([record for record in caplog.records if "newer rows are dropped" in record.getMessage()]) == 1


async def test_a_batch_whose_commit_was_not_answered_is_there_once(
    history: History, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, attempts = history._recorder._write_all, []

    async def write_and_lose_the_answer(rows: Sequence[Row]) -> None:
        attempts.append(rows)
        await write(rows)
        if len(attempts) == 1:
            raise ConnectionResetError

    monkeypatch.setattr(history._recorder, "_write_all", write_and_lose_the_answer)
    history.session_created(session_row("a"))
    for n in (1, 2, 3):
        history.step(step_row("a", n))
    history.supersede("a", 1)
    for kind in ("created", "changed"):
        history.event(event_row("a", kind))
    assert await history.steps("a", **ALL) == [step_row("a", 1)]
    assert [row.kind for row in await history.events("a", **ALL)] == ["created", "changed"]
    assert ask(database, "SELECT step FROM superseded_steps ORDER BY id") == ["2", "3"]
    assert attempts[0] == attempts[1]
