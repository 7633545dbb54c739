"""A journal under test, and what is committed to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from optimd_service.store import failpoints
from optimd_service.store.journal import Journal

PIECE = 2**22
WRITERS = ThreadPoolExecutor(2)


class Written(NamedTuple):
    """A record as it was committed, and as it is to be read."""

    kind: str
    fields: dict[str, Any]
    payload: bytes


def record(number: int, nbytes: int = 100) -> Written:
    """One that is like no other."""
    return Written("push", {"number": number, "lr": number / 7}, number.to_bytes(2, "big") * (nbytes // 2))


@contextmanager
def opened(folder: Path, after: int = 0) -> Iterator[Journal]:
    with closing(Journal.open(folder, WRITERS, after)) as journal:
        yield journal


def append(journal: Journal, written: Written, pieces: Sequence[int] = ()) -> int:
    """Commit it, its payload in pieces that end at these offsets, or in blocks."""
    entry = journal.begin(len(written.payload))
    try:
        view, start = memoryview(written.payload), 0
        for stop in [*(pieces or range(PIECE, len(view), PIECE)), len(view)]:
            entry.write(start, view[start:stop])
            start = stop
        return entry.commit(written.kind, written.fields)
    finally:
        entry.discard()


def read(journal: Journal, after: int = 0) -> list[Written]:
    """All that a journal holds behind ``after``; its numbers are without a gap."""
    found = []
    for expected, each in enumerate(journal.records(after), start=after + 1):
        assert each.seq == expected
        assert each.payload is not None
        found.append(Written(each.kind, dict(each.fields), bytes(each.payload)))
    return found


def reopened(folder: Path, after: int = 0) -> list[Written]:
    """All that a server that begins now would find."""
    with opened(folder) as journal:
        return read(journal, after)


def fail(monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """From now on, as if the environment said so."""
    monkeypatch.setattr(failpoints, "_SET", failpoints.parse(points))
