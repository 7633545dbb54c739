from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from optimd_service.history import is_current, migrations, upgrade
from optimd_service.history.engine import open_engine
from optimd_service.history.models import Base


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/history.db"


def tables(url: str) -> set[str]:
    with closing(sqlite3.connect(url.split("///")[1])) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


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


def test_migrations_go_down_and_up_again(url: str) -> None:
    upgrade(url)
    command.downgrade(migrations.config(url), "base")
    assert tables(url) == {"alembic_version"}
    assert not is_current(url)
    upgrade(url)
    assert {"sessions", "steps", "events"} < tables(url)
    assert is_current(url)


def test_the_command_line_takes_the_database_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMD_DATABASE_URL", url)
    config = migrations.config(url)
    del config.attributes["database_url"]
    command.upgrade(config, "head")
    assert is_current(url)


def test_upgrading_a_current_database_keeps_its_rows(url: str) -> None:
    upgrade(url)
    with closing(sqlite3.connect(url.split("///")[1])) as connection:
        connection.execute("INSERT INTO sessions VALUES ('a', 'here', 'live', '', 'sgd', '{}', '2026-03-01 12:00:00')")
        connection.commit()
    upgrade(url)
    with closing(sqlite3.connect(url.split("///")[1])) as connection:
        assert connection.execute("SELECT id FROM sessions").fetchall() == [("a",)]
