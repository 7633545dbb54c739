"""How the history database is opened: SQLite, or PostgreSQL through asyncpg."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

SQLITE_PRAGMAS = {
    "busy_timeout": 2000,  # ms; shorter than a reader's patience, so that an outage is known before a read gives up
    "journal_mode": "WAL",  # readers and the one writer do not wait for each other
    "synchronous": "NORMAL",  # a power cut may cost the newest rows, which committed state can give again
    "foreign_keys": "ON",
}
POSTGRESQL_POOL = {
    "pool_size": 2,  # the writer's, and a reader's
    "max_overflow": 3,  # more readers at once; the most that a server ever holds is five
    "pool_pre_ping": True,  # a connection that the database has closed since is replaced before it is used
    "pool_recycle": 300,  # s; what stands between may drop a connection that was quiet for longer, and tell nobody
}
CONNECT_TIMEOUT_S = 3.0
MIGRATION_WAIT_S = 60.0


class DatabaseUnusable(RuntimeError):
    """The history database cannot be used as it is named or as it is; says why, and what to do."""


def open_engine(database_url: str) -> AsyncEngine:
    """The service's engine for `sqlite:///PATH` or `postgresql://USER@HOST/NAME`; connects at first use.

    A URL may name its driver (`sqlite+aiosqlite`, `postgresql+asyncpg`); PostgreSQL's parameters are those of its own
    programs, such as `sslmode` and `host`. Values of rows stay out of error texts, and so out of logs.

    Raises: DatabaseUnusable.
    """
    if _dialect(database_url) == "postgresql":
        return _postgresql(database_url, **POSTGRESQL_POOL)
    engine = _sqlite(database_url)
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def open_for_migration(database_url: str) -> AsyncEngine:
    """An engine for changing the schema: one transaction does all or nothing, and waits for whoever else does it.

    Foreign keys are not enforced: SQLite alters a table by replacing it, which would delete every row that refers to
    the old one.

    Raises: DatabaseUnusable.
    """
    if _dialect(database_url) == "postgresql":
        return _postgresql(database_url, poolclass=NullPool)
    engine = _sqlite(database_url, connect_args={"timeout": MIGRATION_WAIT_S})
    # Left to itself, Python's driver commits every CREATE TABLE by itself.
    event.listen(engine.sync_engine, "connect", _leave_transactions_alone)
    event.listen(engine.sync_engine, "begin", _begin_immediately)
    return engine


# The schemes that people paste, and the database each of them means.
_DIALECTS = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+asyncpg": "postgresql",
}


def _dialect(database_url: str) -> str:
    scheme, separator, _ = database_url.partition("://")
    if not separator or scheme not in _DIALECTS:
        raise DatabaseUnusable(
            "OPTIMD_DATABASE_URL must be like postgresql://USER:PASSWORD@HOST/NAME or sqlite:////PATH/FILE; "
            "no other database keeps the history."
        )
    return _DIALECTS[scheme]


def _sqlite(database_url: str, **options: Any) -> AsyncEngine:
    try:
        url = make_url(database_url).set(drivername="sqlite+aiosqlite")
    except (ArgumentError, ValueError):
        raise DatabaseUnusable("OPTIMD_DATABASE_URL cannot be read; write sqlite:////PATH/FILE.") from None
    return create_async_engine(url, hide_parameters=True, **options)


def _postgresql(database_url: str, **options: Any) -> AsyncEngine:
    # asyncpg reads such URLs as PostgreSQL's own programs do; SQLAlchemy would take their parameters for arguments.
    arguments = {"dsn": f"postgresql://{database_url.partition('://')[2]}", "timeout": CONNECT_TIMEOUT_S}
    try:
        return create_async_engine("postgresql+asyncpg://", hide_parameters=True, connect_args=arguments, **options)
    except ModuleNotFoundError as error:
        raise DatabaseUnusable(
            f"PostgreSQL needs {error.name}, which is not installed: pip install 'optimd[server]'"
        ) from None


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for name, value in SQLITE_PRAGMAS.items():
        cursor.execute(f"PRAGMA {name} = {value}")
    cursor.close()


def _leave_transactions_alone(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # sqlite3's own attribute


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
