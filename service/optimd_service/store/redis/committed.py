"""What a process reads of the commits that others have made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimd_service.store.contract import Record, Remembered
from optimd_service.store.redis.head import Head
from optimd_service.types import Receipt


@dataclass(frozen=True, slots=True)
class Caught:
    """What has come of a session since this process looked last.

    Attributes:
      standing: as it was changed last; None if it was not.
      records: of all commits, as far as they are kept; the oldest first.
      behind: how many of them came behind the one that left the standing so.
    """

    standing: Mapping[str, Any] | None
    records: Sequence[Record]
    behind: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A session as it stands in Redis.

    Attributes:
      standing: as the commit number ``standing_seq`` has left it; None if none has said it.
      remembered: receipts by key, of the commits that the reader does not have.
      records: of the same.
      own_commit: the name of the commit that stands where the reader's newest does; None if it is not kept any more.
    """

    head: Head
    standing: Mapping[str, Any] | None
    standing_seq: int
    remembered: Mapping[str, Remembered]
    records: Sequence[Record]
    own_commit: str | None

    @classmethod
    def of(cls, found: Sequence[Any]) -> Committed:
        """From what the script READ returns."""
        _, body, standing, standing_seq, remembered, records, own = found
        return cls(
            Head.from_json(body),
            json.loads(standing) if standing else None,
            standing_seq,
            _remembered(remembered),
            [Record(kind, fields) for _, kind, fields in map(json.loads, records)],
            None if own is None else json.loads(own)[0],
        )

    def since(self, seq: int) -> Caught:
        """What the commits behind number ``seq`` have brought."""
        standing = self.standing if self.standing_seq > seq else None
        return Caught(standing, self.records, self.head.seq - max(seq, self.standing_seq))


def remembered_text(remember: Mapping[str, Remembered]) -> str:
    """What one commit remembers, as an element of the list; empty for nothing."""
    return json.dumps([[key, kept.receipt, kept.digest.hex()] for key, kept in remember.items()]) if remember else ""


def record_text(commit: str, record: Record | None) -> str:
    """What one commit was made from, as an element of the list."""
    return json.dumps([commit, *(("", {}) if record is None else (record.kind, record.fields))])


def _remembered(texts: Iterable[bytes]) -> dict[str, Remembered]:
    return {
        key: Remembered(Receipt(*receipt), bytes.fromhex(digest))
        for text in texts
        for key, receipt, digest in json.loads(text)
    }
