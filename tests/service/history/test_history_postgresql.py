"""What can go wrong between a history and PostgreSQL, and with SQLite cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from history_rows import event_row, session_row, step_row

import history_database
from history_database import ask
from optimd_service.history import History, HistoryHealth, HistoryUnavailable
from optimd_service.types import StepRow
from postgresql_server import PostgresqlServer

ALL = {"after": 0, "limit": 10_000}
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

pytestmark = pytest.mark.usefixtures("postgresql")


@pytest.fixture
async def locked(database: Path, history: History) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another program keeps the steps to itself until it is ended; a session is recorded before that."""
    history.session_created(session_row("a"))
    assert await history.session("a")
    statement = "LOCK TABLE steps IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)"
    other = await asyncio.create_subprocess_exec(
        *("psql", "-q", "-c", statement, history_database.migrated_url(database)), stdout=asyncio.subprocess.DEVNULL
    )
    await until(lambda: ask(database, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"))
    yield other
    if other.returncode is None:
        other.kill()
    await other.wait()


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110  other threads and programs make it so
        await asyncio.sleep(0.01)


async def until_one_waits(database: Path, condition: str = "true") -> None:
    """Until a connection waits for the lock."""
    await until(lambda: ask(database, f"SELECT 1 {OTHERS} AND wait_event_type = 'Lock' AND {condition}"))


@pytest.mark.parametrize(
    "bad",
    [
        step_row("a", 501, worker="a\0b"),
        step_row("a", 501, worker="w" * 201),
        step_row("a", 501, hyperparameters={"lr": float("nan")}),
    ],
    ids=["NUL", "too long", "JSON without NaN"],
)
async def test_a_row_that_only_postgresql_refuses_is_dropped_alone(history: History, bad: StepRow) -> None:
    history.session_created(session_row("a"))
    for n in range(1, 501):
        history.step(step_row("a", n))
        if n == 250:
            history.step(bad)
    assert len(await history.steps("a", **ALL)) == 500
    assert history.health() == HistoryHealth(pending=0, dropped=1, failing=False)


async def test_connections_that_the_server_closed_are_replaced_unnoticed(
    history: History, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history.session_created(session_row("a"))
    assert await history.session("a")
    ask(database, f"SELECT pg_terminate_backend(pid) {OTHERS}")
    history.step(step_row("a", 1))
    assert await history.steps("a", **ALL) == [step_row("a", 1)]
    assert caplog.records == []


async def test_a_connection_lost_in_the_middle_of_a_batch_leaves_each_row_once(
    history: History, database: Path, locked: asyncio.subprocess.Process
) -> None:
    history.event(event_row("a", "created"))
    for n in range(1, 501):
        history.step(step_row("a", n))
    await until_one_waits(database)
    ask(database, f"SELECT pg_terminate_backend(pid) {OTHERS} AND wait_event_type = 'Lock'")
    await until_one_waits(database)
    ask(database, f"SELECT pg_terminate_backend(pid) {OTHERS} AND query LIKE 'LOCK%'")
    assert [row.receipt.step for row in await history.steps("a", **ALL)] == list(range(1, 501))
    assert [row.kind for row in await history.events("a", **ALL)] == ["created"]
    assert history.health() == HistoryHealth(pending=0, dropped=0, failing=False)


async def test_a_server_that_hangs_counts_as_away_and_readers_are_told_in_time(
    history: History, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimd_service.history.writes.WRITE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("optimd_service.history.history.ANSWER_TIMEOUT_S", 0.5)
    history.session_created(session_row("a"))
    assert await history.session("a")
    postgresql.freeze()
    try:
        history.step(step_row("a", 1))
        with pytest.raises(HistoryUnavailable):
            async with asyncio.timeout(1.5):
                await history.steps("a", **ALL)
        await until(lambda: history.health().failing)
    finally:
        postgresql.thaw()
    await until(lambda: not history.health().pending)
    monkeypatch.setattr("optimd_service.history.history.ANSWER_TIMEOUT_S", 5.0)
    assert await history.steps("a", **ALL) == [step_row("a", 1)]


async def test_a_deletion_may_take_longer_than_other_writes(
    history: History, database: Path, locked: asyncio.subprocess.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimd_service.history.writes.WRITE_TIMEOUT_S", 0.1)
    deleting = asyncio.create_task(history.delete_session("a"))
    await until_one_waits(database, "now() - query_start > interval '0.3 s'")
    assert not history.health().failing
    ask(database, f"SELECT pg_terminate_backend(pid) {OTHERS} AND query LIKE 'LOCK%'")
    await deleting
    assert await history.session("a") is None
