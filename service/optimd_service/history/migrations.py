"""The schema's versions: bring a database up to date, or ask whether it is.

Neither may be called where an event loop runs; from there, use `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from optimd_service.history.engine import DatabaseUnusable, open_for_migration


def upgrade(database_url: str) -> None:
    """Create the schema, or bring it to the newest version, keeping every row: wholly, or not at all.

    Raises: DatabaseUnusable.
    """
    with _usable():
        command.upgrade(config(database_url), "head")


def is_current(database_url: str) -> bool:
    """Whether the schema is there, in the version that this code reads and writes.

    Raises: DatabaseUnusable.
    """
    with _usable():
        found = asyncio.run(_versions(database_url))
    return found == set(ScriptDirectory.from_config(config(database_url)).get_heads())


def config(database_url: str) -> Config:
    """Alembic's configuration, for its commands to be called from code."""
    here = Config()
    here.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    here.attributes["database_url"] = database_url
    return here


def _folder() -> Path:
    package = Path(__file__).parents[1]
    packaged = package / "migrations"
    return packaged if packaged.is_dir() else package.parents[1] / "migrations"


async def _versions(database_url: str) -> set[str]:
    engine = open_for_migration(database_url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_heads)
    finally:
        await engine.dispose()


def _heads(connection: Connection) -> set[str]:
    return set(MigrationContext.configure(connection).get_current_heads())


@contextmanager
def _usable() -> Iterator[None]:
    """Turn whatever a database or its driver can say against us into DatabaseUnusable."""
    try:
        yield
    except CommandError as error:
        raise DatabaseUnusable("The history database is of a newer release of optimd; run that release.") from error
    except (SQLAlchemyError, OSError, ValueError) as error:
        reason = str(getattr(error, "orig", error)) or "it does not answer"
        raise DatabaseUnusable(
            f"The history database cannot be used: {reason.splitlines()[0]}. "
            "See that it runs and that OPTIMD_DATABASE_URL names it."
        ) from error
