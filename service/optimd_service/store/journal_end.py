"""Where a journal ends: behind its newest record that is whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from optimd_service.store.disk import PAGE, File
from optimd_service.store.segment import Segment, corrupt, path_of
from optimd_service.store.segment_reader import SegmentReader, Unsound


def last_segment(folder: Path, firsts: Sequence[int], acknowledged: int, after: int) -> Segment:
    """The segment that goes on, without what is left of a record that was never acknowledged; or a first one.

    A record that cannot be read is such a left-over, unless it was acknowledged, or others lie behind it.

    Args:
      firsts: what each segment begins with, in order.
      acknowledged: number of the newest record that is known to have been.
      after: the record behind which a first one begins.

    Raises: JournalCorrupt, OSError.
    """
    if firsts:
        return _continued(path_of(folder, firsts[-1]), acknowledged)
    if after < acknowledged:
        corrupt(path_of(folder, after + 1), 0, f"Records {after + 1} to {acknowledged} are missing")
    return Segment.create(folder, after + 1)


def _continued(path: Path, acknowledged: int) -> Segment:
    with closing(SegmentReader(path)) as reader:
        seq, tail = _end_of(path, reader, acknowledged)
    file = File(path)
    try:
        segment = Segment(file, reader.opening, seq, tail)
        segment.cut()  # and sync: a record that was read may have been on its way to the disk
    except BaseException:
        file.close()
        raise
    return segment


def _end_of(path: Path, reader: SegmentReader, acknowledged: int) -> tuple[int, int]:
    """Number of the newest record, and where it ends."""
    seq, tail = reader.opening.first - 1, PAGE
    try:
        for found in reader.walk():
            if found.head.seq > acknowledged:
                reader.check(found)
            seq, tail = found.head.seq, found.end
    except Unsound:
        if seq < acknowledged or reader.holds_later(tail, seq + 1):
            corrupt(path, tail, f"Record {seq + 1} is damaged")
    return seq, tail
