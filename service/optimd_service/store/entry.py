"""A record on its way into the journal, while its payload is still coming."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from typing import Any

import torch

from optimd_service.store.disk import PAGE, aligned, padded, translated
from optimd_service.store.failpoints import failpoint
from optimd_service.store.mark import Mark
from optimd_service.store.record import Head, Meta, Sums, sum_of
from optimd_service.store.segment import Segment

# A piece of so many bytes is worth another thread.
_QUEUED = 2**16


class Entry(ABC):
    """One record. It is in the journal when ``commit`` returns, and wholly absent if it raises or is not called.

    Args:
      segment: that it is appended to, with room for it.
      mark: told when it is on disk.
      payload_bytes: how long its payload will be, exactly.
    """

    def __init__(self, segment: Segment, mark: Mark, payload_bytes: int) -> None:
        segment.busy = True
        self._segment = segment
        self._mark = mark
        self._payload_bytes = payload_bytes
        self._sums = Sums(payload_bytes)
        self._over = False

    def write(self, at: int, piece: memoryview | torch.Tensor) -> None:
        """Take a part of the payload.

        Pieces of one block of 4 MiB come in order; blocks come in any order. Whole blocks in memory that begins at a
        page cost least. A block may be written again from its beginning, after ``written``.

        Args:
          at: its first byte's place in the payload.
          piece: bytes that lie one after the other; they stay as they are until ``written``, ``commit`` or ``discard``
            has returned.

        Raises: DiskFull, JournalFailed; ValueError for what does not belong there.
        """
        self._require_open()
        if isinstance(piece, torch.Tensor):
            piece = memoryview(piece.detach().reshape(-1).view(torch.uint8).numpy().data)
        if piece.nbytes:
            piece = piece.cast("B")
            self._sums.take(at, piece)
            self._put(at, piece)

    @abstractmethod
    def written(self) -> None:
        """Wait until what was given to ``write`` may be changed. Raises: DiskFull, JournalFailed."""

    def commit(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Make it durable.

        Args:
          kind: of the change.   fields: whatever JSON holds; a float that is not finite is read back as None.

        Returns: the record's number.

        Raises: DiskFull, JournalFailed; ValueError for a payload that has not come whole, TypeError for fields that are
        not JSON. The record is not there then, and the entry is over.
        """
        self._require_open()
        segment = self._segment
        try:
            self.written()
            head, meta = self._sealed(kind, fields)
            with translated():
                segment.reserve(head.nbytes)
                self._finish(head, meta)
                failpoint("journal.before_sync")
                segment.file.sync()
                failpoint("journal.after_sync")
        except BaseException:
            self._fail()
            raise
        segment.tail += head.nbytes
        segment.seq = head.seq
        self._end()
        self._mark.set(head.seq)
        failpoint("journal.after_mark")
        return head.seq

    def _sealed(self, kind: str, fields: Mapping[str, Any]) -> tuple[Head, bytes]:
        """The head, and the meta with its padding."""
        text = Meta(kind, dict(fields), self._sums.all()).pack()
        meta = text.ljust(padded(len(text)), b"\0")
        return Head(self._segment.seq + 1, self._payload_bytes, len(text), sum_of(meta)), meta

    def discard(self) -> None:
        """Forget it. A second call, or one after ``commit``, does nothing."""
        if not self._over:
            self._end()

    def _require_open(self) -> None:
        if self._over:
            raise RuntimeError("this entry is over")

    def _fail(self) -> None:
        """Take back what may be on disk of it. After a failed sync, nobody knows what the disk holds."""
        self._end()
        self._segment.sound = False
        with suppress(OSError):  # the segment that replaces this one says where it ends
            self._segment.cut()

    def _end(self) -> None:
        self._over = True
        self._segment.busy = False

    @abstractmethod
    def _put(self, at: int, piece: memoryview) -> None:
        """Take bytes of the payload."""

    @abstractmethod
    def _finish(self, head: Head, meta: bytes) -> None:
        """Write what is not written yet, the head last."""


class Staging:
    """Aligned memory in which a small record is put together."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def of(self, nbytes: int) -> memoryview:
        """So many bytes, which begin with those of the last call."""
        if len(self._memory) < nbytes:
            larger = aligned(nbytes)
            larger[: len(self._memory)] = self._memory
            self._memory = larger
        return self._memory[:nbytes]


class SmallEntry(Entry):
    """Put together in memory, and written at once.

    Args:
      staging: whose memory it may use until it is over.
    """

    def __init__(self, segment: Segment, mark: Mark, payload_bytes: int, staging: Staging) -> None:
        super().__init__(segment, mark, payload_bytes)
        self._staging = staging
        self._place = staging.of(PAGE + padded(payload_bytes))

    def _put(self, at: int, piece: memoryview) -> None:
        self._place[PAGE + at : PAGE + at + len(piece)] = piece

    def written(self) -> None:
        """It was copied."""

    def _finish(self, head: Head, meta: bytes) -> None:
        end = PAGE + self._payload_bytes
        whole = self._staging.of(head.nbytes)
        whole[:PAGE] = head.pack(self._segment.opening.salt)
        whole[end : head.meta_at] = bytes(head.meta_at - end)
        whole[head.meta_at :] = meta
        failpoint("journal.before_write")
        self._segment.file.write(self._segment.tail, whole)


class LargeEntry(Entry):
    """Written piece by piece, as its payload comes, from where it lies.

    Args:
      writers: the threads that write.
    """

    def __init__(self, segment: Segment, mark: Mark, payload_bytes: int, writers: Executor) -> None:
        super().__init__(segment, mark, payload_bytes)
        self._writers = writers
        self._begun: list[Future[None]] = []

    def _put(self, at: int, piece: memoryview) -> None:
        if len(piece) < _QUEUED:
            self._write(at, piece)
        else:
            self._begun.append(self._writers.submit(self._write, at, piece))

    def _write(self, at: int, piece: memoryview) -> None:
        with translated():
            failpoint("journal.mid_payload")
            self._segment.file.write(self._segment.tail + PAGE + at, piece)

    def written(self) -> None:
        for piece in self._begun:
            piece.result()
        self._begun.clear()

    def _finish(self, head: Head, meta: bytes) -> None:
        file, tail = self._segment.file, self._segment.tail
        failpoint("journal.before_meta")
        file.write(tail + head.meta_at, memoryview(meta))
        failpoint("journal.before_head")
        file.write(tail, memoryview(head.pack(self._segment.opening.salt)))

    def _end(self) -> None:
        wait(self._begun)
        super()._end()
