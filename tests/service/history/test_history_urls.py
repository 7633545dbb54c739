"""What OPTIMD_DATABASE_URL may say."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import history_database
from optimd_service.history import DatabaseUnusable, is_current, upgrade
from optimd_service.history.engine import open_engine
from postgresql_server import PostgresqlServer


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize("parameters", ["", "&sslmode=prefer&application_name=optimd&target_session_attrs=read-write"])
def test_every_way_to_write_a_postgresql_url_is_understood(
    postgresql: PostgresqlServer, tmp_path: Path, scheme: str, parameters: str
) -> None:
    url = history_database.empty_url(tmp_path) + parameters
    upgrade(url.replace("postgresql", scheme, 1))
    assert is_current(url)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
def test_every_way_to_write_an_sqlite_url_is_understood(tmp_path: Path, scheme: str) -> None:
    upgrade(f"{scheme}:///{tmp_path}/history.db")
    assert is_current(f"sqlite:///{tmp_path}/history.db")


@pytest.mark.parametrize("url", ["mysql://u:secret@host/name", "secret", "postgresql", "/var/lib/secret.db", ""])
def test_a_url_of_no_database_we_know_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(DatabaseUnusable, match="must be like postgresql://") as refusal:
        open_engine(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:p@127.0.0.1:1/name", "Connect call failed"),
        ("postgresql://u:p@127.0.0.1:port/name", "port"),
        ("postgresql://u:p@127.0.0.1/name?sslmode=often", "sslmode"),
        ("postgresql://u:p@/name?host=/nowhere", "No such file"),
        ("sqlite:////nowhere/history.db", "unable to open"),
        ("sqlite://:::/history.db", "sqlite:"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_with_the_reason(url: str, said: str) -> None:
    for use in (is_current, upgrade):
        with pytest.raises(DatabaseUnusable, match=said):
            use(url)


def test_a_missing_driver_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(DatabaseUnusable, match=r"asyncpg, which is not installed: pip install 'optimd\[server\]'"):
        open_engine("postgresql://host/name")


def test_a_server_keeps_few_connections_to_postgresql(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    """Twenty ask at once, and are served by five connections at most."""
    url = history_database.migrated_url(tmp_path)
    seen = []

    async def ask_often() -> None:
        engine = open_engine(url)

        async def ask() -> None:
            async with engine.connect() as connection:
                count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                seen.append((await connection.exec_driver_sql(count)).scalar_one())

        await asyncio.gather(*(ask() for _ in range(20)))
        await engine.dispose()

    asyncio.run(ask_often())
    assert len(seen) == 20
    assert max(seen) <= 5
