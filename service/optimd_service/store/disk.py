"""Files on disk, written and read past the page cache where that can be done, and errors that say what to do.

Gradients are written once and hardly ever read. The page cache would copy them, and push out what others need.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from optimd_service.errors import DiskFull, JournalFailed
from optimd_service.store.failpoints import failpoint

PAGE = 4096
"""Bytes. What goes past the page cache begins and ends at multiples of it, in the file and in memory."""
# What is copied at once to where it is aligned: fits a core's cache.
_COPIED = 2**20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_Call: TypeAlias = Callable[[int, memoryview, int], int]
"""Of a file descriptor, memory and an offset: bytes done."""

log = logging.getLogger("optimd")


def padded(nbytes: int) -> int:
    """The same, rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def aligned(nbytes: int) -> memoryview:
    """New memory that begins at a page, at zero."""
    return memoryview(mmap.mmap(-1, max(padded(nbytes), PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:nbytes]


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the system says into what a caller can act on. Raises: DiskFull, JournalFailed."""
    try:
        yield
    except OSError as error:
        log.error("optimd's disk: %s", error)  # noqa: TRY400  the disk failed, where it was called from says nothing
        if error.errno in _NO_ROOM:
            raise DiskFull("The server's disk is full. Try again when there is room on it.") from error
        raise JournalFailed("The server's disk failed; its log says how. Try again in a while.") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class File:
    """One file. Its methods may be called by several threads, for parts that share no page.

    Args:
      path: of a file that is there, unless ``new``.
      new: begin an empty one, in place of one that may be there.

    Raises: OSError, as all of its methods do.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if new else 0), 0o600)
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:  # not every file system can
                self._direct = None

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def reserve(self, at: int, nbytes: int) -> None:
        """Take room, so that writing there cannot find the disk full. What is new reads as zeros."""
        failpoint("disk.reserve")
        os.posix_fallocate(self._fd, at, nbytes)

    def write(self, at: int, piece: memoryview) -> None:
        """Write bytes; whole pages past the page cache."""
        failpoint("disk.write")
        start, stop = padded(at) - at, (at + len(piece)) // PAGE * PAGE - at
        if self._direct is None or stop <= start:
            _every(os.pwrite, self._fd, at, piece)
            return
        _every(os.pwrite, self._fd, at, piece[:start])
        self._write_pages(self._direct, at + start, piece[start:stop])
        _every(os.pwrite, self._fd, at + stop, piece[stop:])

    def _write_pages(self, direct: int, at: int, piece: memoryview) -> None:
        for start, part, copy in _in_aligned(piece):
            if copy is not part:
                copy[:] = part
            if self._past_the_cache(os.pwrite, direct, at + start, copy) < len(part):
                _every(os.pwrite, self._fd, at + start, part)

    def read_into(self, at: int, place: memoryview) -> int:
        """Fill ``place`` as far as the file goes, and say how far that was."""
        whole = len(place) // PAGE * PAGE if self._direct is not None and at % PAGE == 0 else 0
        done = self._read_pages(at, place[:whole])
        return done + _every(_pread, self._fd, at + done, place[done:])

    def _read_pages(self, at: int, place: memoryview) -> int:
        done = 0
        for start, part, copy in _in_aligned(place):
            count = self._past_the_cache(_pread, self._direct, at + start, copy)
            if copy is not part:
                part[:count] = copy[:count]
            done += count
            if count < len(part):
                break
        return done

    @staticmethod
    def _past_the_cache(call: _Call, direct: int | None, at: int, piece: memoryview) -> int:
        """How much of whole pages could be done without the page cache; 0 where this disk wants more than that."""
        try:
            return 0 if direct is None else _every(call, direct, at, piece)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def sync(self) -> None:
        """Make durable what was written."""
        failpoint("disk.sync")
        os.fdatasync(self._fd)

    def cut(self, size: int) -> None:
        """Give up what lies behind ``size``, durably."""
        failpoint("disk.cut")
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    def close(self) -> None:
        """A second call does nothing."""
        for fd in (self._fd, self._direct):
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._direct = -1, None


def _pread(fd: int, place: memoryview, at: int) -> int:
    return os.preadv(fd, [place], at)


def _every(call: _Call, fd: int, at: int, piece: memoryview) -> int:
    """Call until all is done or nothing more comes."""
    done = 0
    while done < len(piece):
        count = call(fd, piece[done:], at + done)
        if not count:
            break
        done += count
    return done


_own = threading.local()


def _in_aligned(piece: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Stretches of ``piece``: where each begins, itself, and memory as long that is aligned, itself if it can be."""
    if not len(piece):
        return
    if np.frombuffer(piece, np.uint8).__array_interface__["data"][0] % PAGE == 0:
        yield 0, piece, piece
        return
    if not hasattr(_own, "copy"):
        _own.copy = aligned(_COPIED)
    for start in range(0, len(piece), _COPIED):
        part = piece[start : start + _COPIED]
        yield start, part, _own.copy[: len(part)]
