"""The data directory: one server's own place on disk."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from typing import Self


class DirectoryInUse(RuntimeError):
    """Another server runs on this data directory."""


class DataDirectory:
    """Made when missing; held by one server at a time.

    Attributes:
      path: absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.path.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Raises: DirectoryInUse."""
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DirectoryInUse(
                f"Another server runs on {self.path}; stop it, or give this one its own --data."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def server_id(self) -> str:
        """Who holds the sessions of this directory; the same whenever a server is started on it."""
        file = self.path / "server-id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        return file.read_text().strip()

    @property
    def database_url(self) -> str:
        """The history database that needs nothing installed."""
        return f"sqlite+aiosqlite:///{self.path / 'history.sqlite3'}"
