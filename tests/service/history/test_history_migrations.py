from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed_migration
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

import history_database
from history_database import ask, tables
from optimd_service.history import DatabaseUnusable, is_current, migrations, upgrade
from optimd_service.history.engine import open_engine
from optimd_service.history.models import Base

SESSION = "INSERT INTO sessions VALUES ('a', 'here', 'live', '', 'sgd', '{}', '2026-03-01 12:00:00')"
EVENT = "INSERT INTO events VALUES ({}, 'a', 'created', 0, '{{}}', '2026-03-01 12:00:00')"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def url(place: Path) -> str:
    """Of a database without a schema."""
    return history_database.empty_url(place)


@pytest.fixture
def first_version(place: Path, url: str) -> None:
    """The database has the oldest schema, and rows."""
    command.upgrade(migrations.config(url), "0001")
    ask(place, SESSION)
    ask(place, EVENT.format(1))


async def differences(url: str) -> Any:
    def compare(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    engine = open_engine(url)
    async with engine.connect() as connection:
        found = await connection.run_sync(compare)
    await engine.dispose()
    return found


def test_the_migrated_schema_is_the_models_schema(url: str) -> None:
    assert asyncio.run(differences(url))
    upgrade(url)
    assert asyncio.run(differences(url)) == []


def test_a_database_is_current_once_it_is_upgraded(url: str) -> None:
    assert not is_current(url)
    upgrade(url)
    assert is_current(url)


def test_migrations_go_down_and_up_again(place: Path, url: str) -> None:
    upgrade(url)
    command.downgrade(migrations.config(url), "base")
    assert tables(place) == {"alembic_version"}
    assert not is_current(url)
    upgrade(url)
    assert {"sessions", "steps", "events"} < tables(place)
    assert is_current(url)


def test_the_command_line_takes_the_database_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMD_DATABASE_URL", url)
    config = migrations.config(url)
    del config.attributes["database_url"]
    command.upgrade(config, "head")
    assert is_current(url)


def test_upgrading_a_current_database_keeps_its_rows(place: Path, url: str) -> None:
    upgrade(url)
    ask(place, SESSION)
    upgrade(url)
    assert ask(place, "SELECT id FROM sessions") == ["a"]


def test_events_that_were_written_twice_are_one_after_the_upgrade(place: Path, url: str, first_version: None) -> None:
    ask(place, EVENT.format(2))
    ask(place, EVENT.format(3).replace("created", "changed"))
    upgrade(url)
    assert ask(place, "SELECT id, kind FROM events ORDER BY id") == ["1|created", "3|changed"]


def test_several_upgrades_at_once_all_succeed(url: str) -> None:
    program = "import sys; from optimd_service.history import upgrade; print(); input(); upgrade(sys.argv[1])"
    command_line = [sys.executable, "-u", "-c", program, url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command_line, **pipes) for _ in range(3)]
    for one in started:
        assert one.stdout.readline() == "\n"
    for one in started:
        one.stdin.write("\n")
        one.stdin.flush()
    assert [(one.communicate(timeout=60)[1], one.returncode) for one in started] == [("", 0)] * 3
    assert is_current(url)


def test_a_killed_upgrade_has_changed_nothing_and_can_be_repeated(place: Path, url: str, first_version: None) -> None:
    before = (tables(place), ask(place, "SELECT * FROM events"))
    kills = 0
    for code in killed_migration.at_every_statement(url):
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert (tables(place), ask(place, "SELECT * FROM events")) == before
        assert ask(place, "SELECT version_num FROM alembic_version") == ["0001"]
        assert not is_current(url)
    assert kills >= 4
    assert is_current(url)
    assert ask(place, "SELECT id FROM sessions") == ["a"]


def test_a_newer_database_is_refused(place: Path, url: str) -> None:
    upgrade(url)
    ask(place, "UPDATE alembic_version SET version_num = '9999'")
    assert not is_current(url)
    with pytest.raises(DatabaseUnusable, match="newer release"):
        upgrade(url)


def test_a_database_that_is_not_there_is_named_unusable(tmp_path: Path) -> None:
    missing = history_database.missing_url(tmp_path)
    for use in (upgrade, is_current):
        with pytest.raises(DatabaseUnusable, match="OPTIMD_DATABASE_URL"):
            use(missing)
