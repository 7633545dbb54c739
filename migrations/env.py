"""Runs migrations for Alembic, from code (`config.attributes["database_url"]`) and from its command line."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from optimd_service.history.models import Base


def database_url() -> str:
    url = (
        context.config.attributes.get("database_url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("OPTIMD_DATABASE_URL")
    )
    if not url:
        raise SystemExit("Name the database: alembic -x url=sqlite+aiosqlite:///PATH …, or set OPTIMD_DATABASE_URL.")
    return str(url)


def print_sql() -> None:
    context.configure(url=database_url(), target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate() -> None:
    # Not the service's own engine: it enforces foreign keys, and SQLite alters a table by replacing it, which would
    # delete every row that refers to the old one.
    engine = create_async_engine(database_url())
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    print_sql()
else:
    asyncio.run(connect_and_migrate())
