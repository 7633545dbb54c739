"""How the history database is opened."""

from __future__ import annotations

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

SQLITE_PRAGMAS = {
    "busy_timeout": 2000,  # ms; shorter than a reader's patience, so that an outage is known before a read gives up
    "journal_mode": "WAL",  # readers and the one writer do not wait for each other
    "synchronous": "NORMAL",  # a power cut may cost the newest rows, which committed state can give again
    "foreign_keys": "ON",
}


def open_engine(database_url: str) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite://…` or any other asynchronous driver; connects at first use.

    Values of rows stay out of error texts, and so out of logs.
    """
    engine = create_async_engine(database_url, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for name, value in SQLITE_PRAGMAS.items():
        cursor.execute(f"PRAGMA {name} = {value}")
    cursor.close()
