"""A segment: one file of a journal, that begins with a page of its own and holds records one after the other."""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from optimd_service.errors import JournalCorrupt
from optimd_service.store.disk import PAGE, File, aligned, padded, sync_folder
from optimd_service.store.failpoints import failpoint
from optimd_service.store.record import SALT_BYTES, VERSION, is_sealed, seal

# Room that is written with zeros before it is needed: a record there costs the disk one write and no bookkeeping.
_LEAST_AHEAD, _MOST_AHEAD = 2**16, 2**22
_ZEROS = aligned(_MOST_AHEAD)
_MAGIC = b"optimd-s"
_OPENING = struct.Struct(f"<8sI4x{SALT_BYTES}sQ")
_NAME = re.compile(r"journal-(\d{20})\.optj")


def corrupt(path: Path, offset: int, found: str) -> NoReturn:
    """Raises: JournalCorrupt."""
    raise JournalCorrupt(
        f"{found}: {path.name} at byte {offset} of this session's folder. Put the file back from a copy, or delete the "
        "session and create one from your last pull or export.",
        file=path.name,
        offset=offset,
    )


class Opening(NamedTuple):
    """The first page of a segment.

    Attributes:
      salt: random; in every head of this segment.
      first: number of the first record, whether there is one yet or not.
    """

    salt: bytes
    first: int

    def pack(self) -> bytes:
        """One page."""
        return seal(_OPENING.pack(_MAGIC, VERSION, *self))

    @classmethod
    def read(cls, path: Path, page: memoryview) -> Opening:
        """The opening of the segment at ``path``. Raises: JournalCorrupt."""
        if len(page) < PAGE or bytes(page[: len(_MAGIC)]) != _MAGIC:
            corrupt(path, 0, "This is no segment of a journal")
        _, version, salt, first = _OPENING.unpack_from(page)
        if not is_sealed(page):
            corrupt(path, 0, "The first page of a segment is damaged")
        if version != VERSION:
            corrupt(path, 0, f"This segment is of format {version}, and this server reads {VERSION}")
        if first != first_of(path):
            corrupt(path, 0, f"This segment begins with record {first}, whatever its name says")
        return cls(salt, first)


def path_of(folder: Path, first: int) -> Path:
    """Of the segment that begins with this record."""
    return folder / f"journal-{first:020}.optj"


def first_of(path: Path) -> int:
    """The record that a segment begins with, by its name. Raises: JournalCorrupt, for a file that is none."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else corrupt(path, 0, "This is no segment of a journal")


class Segment:
    """The segment that records are appended to.

    Args:
      file: of it, given away.
      seq: number of its newest record, ``opening.first - 1`` if there is none.
      tail: where the next record begins.

    Attributes:
      sound: whether what was written so far is what is on disk; if not, the next record needs a segment of its own.
      busy: an entry is on its way.
    """

    def __init__(self, file: File, opening: Opening, seq: int, tail: int) -> None:
        self.file = file
        self.opening = opening
        self.seq = seq
        self.tail = tail
        self.sound = True
        self.busy = False
        self._room = tail

    @classmethod
    def create(cls, folder: Path, first: int) -> Segment:
        """Begin an empty one, in place of one of the same name. Raises: OSError; there may be a ``.new`` left then."""
        failpoint("journal.before_segment")
        path, opening = path_of(folder, first), Opening(os.urandom(SALT_BYTES), first)
        file = File(path.with_suffix(".new"), new=True)
        try:
            file.write(0, memoryview(opening.pack()))
            file.sync()
            failpoint("journal.before_rename")
            path.with_suffix(".new").replace(path)
            sync_folder(folder)
        except BaseException:
            file.close()
            raise
        return cls(file, opening, first - 1, PAGE)

    @property
    def is_empty(self) -> bool:
        return self.seq < self.opening.first

    def reserve(self, nbytes: int) -> None:
        """Take room for a record of so many bytes. Raises: OSError."""
        missing = self.tail + nbytes - self._room
        if missing <= 0:
            return
        if missing < _MOST_AHEAD:
            # As much again as there is: a session of three steps takes little, and one of a thousand asks seldom.
            ahead = padded(max(missing, min(max(self.tail, _LEAST_AHEAD), _MOST_AHEAD)))
            with suppress(OSError):  # there may be room for this record and not for more
                self.file.write(self._room, _ZEROS[:ahead])
                self._room += ahead
                return
        self.file.reserve(self._room, padded(missing))
        self._room += padded(missing)

    def cut(self) -> None:
        """Give up what lies behind the newest record. Raises: OSError."""
        self.file.cut(self.tail)
        self._room = self.tail
