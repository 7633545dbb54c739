"""What the keys of a session are called in Redis."""

from __future__ import annotations

from typing import NamedTuple

SESSIONS = "optimd:sessions"
"""The set of the ids of all sessions."""


class Keys(NamedTuple):
    """Keys of one session. All hold its id in braces: a Redis Cluster keeps them on one node, to be changed together.

    Attributes:
      session: what they all begin with.
      head: what is committed (``Head``), and the session's standing.
      remembered: list; receipts by idempotency key, the newest last, a commit an element.
      records: list; what commits were made from, the newest last.
      deleted: there for a while after the session was.
    """

    session: str
    head: str
    remembered: str
    records: str
    deleted: str

    @classmethod
    def of(cls, session: str) -> Keys:
        """Those of a session."""
        own = f"optimd:{{{session}}}"
        return cls(own, f"{own}:head", f"{own}:remembered", f"{own}:records", f"{own}:deleted")

    @property
    def values(self) -> tuple[str, ...]:
        """All but the chunks, in the order in which the scripts take them."""
        return (self.head, self.remembered, self.records, self.deleted)

    def chunk(self, buffer: str, number: int, commit: str) -> str:
        """One piece of a buffer, as a commit has written it; never written again."""
        return f"{self.session}:chunk:{commit}:{buffer}:{number}"
