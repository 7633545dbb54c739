"""What a session handle knows without asking, blocking or not."""

from __future__ import annotations

from optimd._core import SessionCore
from optimd.models import SessionInfo


class Handle:
    """A session's id, its description and its version, as they were last heard of."""

    _core: SessionCore

    @property
    def id(self) -> str:
        """The session's id on the server."""
        return self._core.id

    @property
    def info(self) -> SessionInfo:
        """The session as the server last described it; `refresh` asks anew."""
        return self._core.info

    @property
    def etag(self) -> str | None:
        """The version that any reply named last, such as "3.0"; a step builds on it unless told otherwise."""
        return self._core.etag

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} etag={self.etag}>"
