"""Where the tests keep histories (`pytest --database`): SQLite, or a PostgreSQL server of this process's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from postgresql_server import PostgresqlServer

Kind = Literal["sqlite", "postgresql"]

kind: Kind = "sqlite"
"""This run's; conftest sets it before the first test."""
at_the_end = ExitStack()
"""What was started here; conftest closes it after the last test."""
TEMPLATE = "migrated"


@cache
def postgresql() -> PostgresqlServer:
    """The server, started when it is first asked for; it holds an empty database of today's schema to copy."""
    server = at_the_end.enter_context(PostgresqlServer())
    server.sql(f"CREATE DATABASE {TEMPLATE}")
    _upgrade(server.url(TEMPLATE))
    return server


def empty_url(place: Path) -> str:
    """A database without a schema that belongs to this path, which no other has."""
    return f"sqlite:///{place}" if kind == "sqlite" else _created(place, template="template0")


def migrated_url(place: Path) -> str:
    """The database with today's schema that belongs to this path; made when it is not there."""
    if kind == "postgresql":
        return _created(place, template=TEMPLATE)
    _upgrade(f"sqlite:///{place}")
    return f"sqlite:///{place}"


def missing_url(place: Path) -> str:
    """Of a database that is not there and cannot be made."""
    return f"sqlite:///{place}/missing/history.db" if kind == "sqlite" else postgresql().url("missing")


def ask(place: Path, question: str) -> list[str]:
    """What the database of this path answers in SQL: a string for each row, columns parted by a bar."""
    if kind == "postgresql":
        return postgresql().sql(question, _name(place)).splitlines()
    with closing(sqlite3.connect(place, isolation_level=None)) as connection:
        return ["|".join(map(str, row)) for row in connection.execute(question)]


def tables(place: Path) -> set[str]:
    return set(ask(place, _TABLES[kind]))


_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
    "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
}


@contextmanager
def away(place: Path) -> Iterator[None]:
    """The database of this path takes no rows: another program keeps SQLite's for itself, PostgreSQL has crashed."""
    if kind == "postgresql":
        postgresql().kill()
        try:
            yield
        finally:
            postgresql().start()
    else:
        with closing(sqlite3.connect(place, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield


def _upgrade(url: str) -> None:
    from optimd_service.history import upgrade  # with torch, which tests of clients need not load

    upgrade(url)


def _created(place: Path, *, template: str) -> str:
    server, name = postgresql(), _name(place)
    if name not in server.sql("SELECT datname FROM pg_database").splitlines():
        server.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.url(name)


def _name(place: Path) -> str:
    return f"of_{blake2b(str(place).encode(), digest_size=12).hexdigest()}"
