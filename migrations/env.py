"""Runs migrations for Alembic, from code (`config.attributes["database_url"]`) and from its command line."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, func, select

from optimd_service.history.engine import open_for_migration
from optimd_service.history.models import Base

# Any number, as long as every release of optimd takes the same and nobody else does.
POSTGRESQL_LOCK = 7_204_131_845


def database_url() -> str:
    url = (
        context.config.attributes.get("database_url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("OPTIMD_DATABASE_URL")
    )
    if not url:
        raise SystemExit("Name the database: alembic -x url=sqlite:///PATH …, or set OPTIMD_DATABASE_URL.")
    return str(url)


def print_sql() -> None:
    dialect = open_for_migration(database_url()).dialect.name
    context.configure(dialect_name=dialect, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Until the transaction ends: who else migrates now waits here, and then finds nothing to do.
            connection.execute(select(func.pg_advisory_xact_lock(POSTGRESQL_LOCK)))
        context.run_migrations()


async def connect_and_migrate() -> None:
    engine = open_for_migration(database_url())
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    print_sql()
else:
    asyncio.run(connect_and_migrate())
