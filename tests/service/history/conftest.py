from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from history_rows import Opened

import history_database
from optimd_service.history import History


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The path of a migrated database, or that one belongs to (see history_database)."""
    path = tmp_path / "history.db"
    history_database.migrated_url(path)
    return path


@pytest.fixture
def opened(database: Path) -> Opened:
    """Opens a history on the test's database; may be called again, as a server is started again."""
    url = history_database.migrated_url(database)

    @asynccontextmanager
    async def open_history(server_id: str = "here", **settings: Any) -> AsyncIterator[History]:
        history = History(url, server_id=server_id, **settings)
        await history.start()
        try:
            yield history
        finally:
            await history.stop()

    return open_history


@pytest.fixture
async def history(opened: Opened) -> AsyncIterator[History]:
    async with opened() as history:
        yield history
