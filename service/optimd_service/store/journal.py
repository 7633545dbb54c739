"""The journal of a session: every change in the order in which it was committed, on disk before anybody knows of it.

A folder holds it, in segments. The numbers of its records count from 1 and never begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from optimd_service.store.disk import PAGE, padded, sync_folder, translated
from optimd_service.store.entry import Entry, LargeEntry, SmallEntry, Staging
from optimd_service.store.failpoints import failpoint
from optimd_service.store.journal_end import last_segment
from optimd_service.store.mark import Mark
from optimd_service.store.record import Meta
from optimd_service.store.segment import Segment, corrupt, first_of, path_of
from optimd_service.store.segment_reader import Found, SegmentReader, Unsound

# A payload up to here is put together with its head and meta and written at once.
SMALL_BYTES = 2**20
MARK = "synced"

_Take: TypeAlias = Callable[[SegmentReader, Found], memoryview | None]
"""Gives a record's payload, if it is wanted."""


class Read(NamedTuple):
    """A record, read back.

    Attributes:
      seq: its number.   kind, fields: what it was committed with.
      payload: its bytes, good until the next record is asked for; None where they were not read.
    """

    seq: int
    kind: str
    fields: Mapping[str, Any]
    payload_bytes: int
    payload: memoryview | None


class Journal:
    """One session's records, in the order committed. It is made by ``open``.

    One entry at a time is on its way, and only between entries does a new segment begin. Reading goes on beside that,
    of segments that are not dropped meanwhile.
    """

    def __init__(self, folder: Path, writers: Executor, segment: Segment, firsts: list[int], mark: Mark) -> None:
        self._folder = folder
        self._writers = writers
        self._segment = segment
        self._firsts = firsts
        self._mark = mark
        self._staging = Staging()

    @classmethod
    def open(cls, folder: Path, writers: Executor, after: int = 0) -> Journal:
        """Find the end of a journal, or begin one. What is left of a record that was never acknowledged is cut off.

        Args:
          folder: made if it is not there.
          writers: threads that write large payloads, shared with other journals.
          after: the record behind which a new journal begins.

        Raises: JournalCorrupt, if a record that was acknowledged is not there, or one with others behind it is damaged;
        DiskFull, JournalFailed.
        """
        with translated():
            _make(folder)
            mark = Mark(folder / MARK)
            try:
                firsts = [first_of(path) for path in sorted(folder.glob("journal-*.optj"))]
                segment = last_segment(folder, firsts, mark.seq, after)
            except BaseException:
                mark.close()
                raise
            mark.set(segment.seq)
        return cls(folder, writers, segment, firsts or [segment.opening.first], mark)

    @property
    def seq(self) -> int:
        """Number of the newest record; of the one behind which it began, if there is none."""
        return self._segment.seq

    @property
    def begins(self) -> int:
        """Number of the oldest record that is kept; of the next, if there is none."""
        return self._firsts[0]

    @property
    def bytes(self) -> int:
        """On disk, with the room that is taken for what comes."""
        return sum(path_of(self._folder, first).stat().st_size for first in self._firsts)

    def begin(self, payload_bytes: int, meta_bytes: int = PAGE) -> Entry:
        """Take room for a record.

        Args:
          payload_bytes: how long its payload will be, exactly.
          meta_bytes: how long its fields will be in JSON, or more; if they turn out longer, there is room if the disk
            has it at ``commit``.

        Raises: DiskFull, JournalFailed; nothing has changed then.
        """
        self._require_idle()
        with translated():
            if not self._segment.sound:
                self._renew()
            self._segment.reserve(PAGE + padded(payload_bytes) + padded(Meta.room(meta_bytes, payload_bytes)))
        if payload_bytes <= SMALL_BYTES:
            return SmallEntry(self._segment, self._mark, payload_bytes, self._staging)
        return LargeEntry(self._segment, self._mark, payload_bytes, self._writers)

    def start_segment(self) -> None:
        """Let what follows go into a file of its own. Raises: DiskFull, JournalFailed; it goes on as before then."""
        self._require_idle()
        with translated():
            if not (self._segment.sound and self._segment.is_empty):
                self._renew()

    def _require_idle(self) -> None:
        if self._segment.busy:
            raise RuntimeError("an entry of this journal is still on its way")

    def _renew(self) -> None:
        """Begin a segment. It says where the one before ends, whatever that still holds."""
        old = self._segment
        old.sound = False  # the new one may be there though its making failed; nothing may follow in this one
        new = Segment.create(self._folder, old.seq + 1)
        with suppress(OSError):  # room given back, no more
            if not old.is_empty:
                old.cut()
        old.file.close()
        self._segment = new
        if self._firsts[-1] != new.opening.first:
            self._firsts.append(new.opening.first)

    def drop_before(self, seq: int, spared_bytes: int = 0) -> int:
        """Remove the segments of which no record is behind ``seq``, the oldest first; never the newest.

        Args:
          spared_bytes: so much of them may stay.

        Returns: bytes that are free now.

        Raises: JournalFailed.
        """
        freed = 0
        with translated():
            behind = [path_of(self._folder, first) for first, after in pairwise(self._firsts) if after <= seq + 1]
            left = sum(path.stat().st_size for path in behind)
            for path in behind:
                if left - freed <= spared_bytes:
                    break
                failpoint("journal.before_unlink")
                freed += path.stat().st_size
                path.unlink()
                del self._firsts[0]
            if freed:
                sync_folder(self._folder)
        return freed

    def records(self, after: int, until: int | None = None, into: memoryview | None = None) -> Iterator[Read]:
        """The records ``after`` < number ≤ ``until``, in order.

        Args:
          until: without it, to the newest at this moment.
          into: memory for the payloads, best at a page's beginning and long enough for each; the journal's own without.

        Raises: JournalCorrupt, where one of them is damaged or missing; JournalFailed.
        """
        return self._read(after, until, lambda reader, found: reader.payload(found, into))

    def metas(self, after: int, until: int | None = None) -> Iterator[Read]:
        """The same without the payloads, which are not read."""
        return self._read(after, until, lambda _reader, _found: None)

    def _read(self, after: int, until: int | None, take: _Take) -> Iterator[Read]:
        stops = pairwise([*self._firsts, self.seq + 1])
        end = self.seq + 1 if until is None else min(until, self.seq) + 1
        need = after + 1
        with translated():
            for first, next_first in stops:
                stop = min(next_first, end)
                if need >= stop:
                    continue
                if need < first:
                    corrupt(path_of(self._folder, first), 0, f"Records {need} to {first - 1} are missing")
                yield from _read_segment(path_of(self._folder, first), need, stop, take)
                need = stop

    def close(self) -> None:
        """Give back room and files. A second call does nothing."""
        if self._segment.sound and not self._segment.busy:
            with suppress(OSError):
                self._segment.cut()
        self._segment.sound = False
        self._segment.file.close()
        self._mark.close()


def _read_segment(path: Path, need: int, stop: int, take: _Take) -> Iterator[Read]:
    """Records ``need`` ≤ number < ``stop`` of one segment, which ends there whatever else it holds."""
    with closing(SegmentReader(path)) as reader:
        try:
            for found in islice(reader.walk(), stop - first_of(path)):
                if found.head.seq >= need:
                    kind, fields, _ = found.meta
                    yield Read(found.head.seq, kind, fields, found.head.payload_bytes, take(reader, found))
        except Unsound as broken:
            corrupt(path, broken.at, f"Record {broken.seq} is damaged")


def _make(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir()
        sync_folder(folder.parent)
    for left in folder.glob("journal-*.new"):
        left.unlink()
