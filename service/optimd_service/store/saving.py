"""A checkpoint on its way to disk, while the session goes on with its steps."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

from optimd_service.errors import InsufficientMemory
from optimd_service.store.checkpoint import BLOCK, Checkpoint, CheckpointInfo, arrange, checksum, close_off, seal
from optimd_service.store.disk import File, sync_folder, translated
from optimd_service.store.failpoints import failpoint
from optimd_service.store.regions import Region, bytes_of, gather_, memory, new_block

# Memory that is new is slow to write for the first time, also for a core that does nothing else.
COPIERS = min(4, os.cpu_count() or 1)
UNFINISHED = ".tmp"
"""What the name of a file ends with that is not whole yet, or not on disk."""


class Spare(Protocol):
    """Memory for copies of what is not on disk yet when an update wants the buffers."""

    def take(self, needed: int) -> None:
        """Raises: InsufficientMemory."""

    def give_back(self, taken: int) -> None:
        """Say that so many bytes are used no more."""


class NoSpare:
    """None: updates wait for the disk."""

    def take(self, needed: int) -> None:
        raise InsufficientMemory("There is no memory to spare.", needed_bytes=needed, available_bytes=0)

    def give_back(self, taken: int) -> None:
        pass


class _Cancelled(Exception):
    pass


class Saving:
    """Writes a checkpoint block by block, from the buffers themselves.

    The writer goes from the first block on. Whoever is about to change the buffers settles: copies blocks, from the
    last on and as far as there is memory to spare, until the two meet. So neither waits while the other could work.

    Args:
      checkpoint: its buffers stay as they are until ``settle`` or ``cancel`` returns; the rest of it for good.
      path: of the file. It has another name until all of it is on disk.
      spare: where memory for copies is taken from.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, spare: Spare | None = None) -> None:
        self._checkpoint = checkpoint
        self._path = path
        self._spare = spare or NoSpare()
        self._live = arrange(checkpoint.buffers())
        self._copies: dict[int, Region] = {}
        self._blocks = -(-self._live[-1].stop // BLOCK)
        self._begun = self._written = 0  # how many blocks the writer has begun, and written
        self._kept = self._blocks  # the first of those that are copied, or being copied
        self._cancelled = self._running = self._over = False
        self._changed = threading.Condition()

    def run(self) -> CheckpointInfo | None:
        """Write the file; where it is cancelled there is none, and None is returned.

        Raises: DiskFull, JournalFailed. Older checkpoints are what they were.
        """
        with self._changed:
            self._running = not self._over
        try:
            with translated():
                return self._save() if self._running else None
        except _Cancelled:
            return None
        finally:
            self._end()

    def _save(self) -> CheckpointInfo:
        unfinished = self._path.with_name(self._path.name + UNFINISHED)
        try:
            nbytes = self._write(unfinished)
            failpoint("checkpoint.before_rename")
            unfinished.rename(self._path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        failpoint("checkpoint.before_directory_sync")
        sync_folder(self._path.parent)
        failpoint("checkpoint.after_directory_sync")
        return self._checkpoint.info(nbytes)

    def _write(self, path: Path) -> int:
        """Write and sync everything, and say how many bytes that is."""
        following = close_off(self._live, self._checkpoint.session_text())
        header = self._checkpoint.header([*self._live, *following])
        nbytes = len(header) + following[-1].stop
        with closing(File(path, new=True)) as file:
            file.reserve(0, nbytes)
            file.write(0, memoryview(header))
            sums = self._write_blocks(file, len(header), following)
            file.write(len(header) + following[-1].start, memoryview(seal(sums, header)))
            failpoint("checkpoint.before_sync")
            file.sync()
        return nbytes

    def _write_blocks(self, file: File, at: int, following: list[Region]) -> list[int]:
        """Write all before the checksums, which are returned. ``at``: where the first block begins."""
        bounce = new_block(BLOCK)
        sums = []
        for number, start in enumerate(range(0, following[-1].start, BLOCK)):
            stop = min(start + BLOCK, following[-1].start)
            regions = [*self._begin(number), *following]
            piece = memory(regions, start, stop)
            if piece is None:
                gather_(bounce[: stop - start], regions, start)
                piece = bytes_of(bounce[: stop - start])
            sums.append(checksum(piece))
            failpoint("checkpoint.write")
            file.write(at + start, piece)
            self._done(number)
        return sums

    def settle(self) -> None:
        """Return when the buffers may be changed."""
        blocks = self._kept - self._begun
        if not self._void and blocks > 0:
            with ThreadPoolExecutor(min(blocks, COPIERS)) as copiers:
                for done in [copiers.submit(self._copy_last) for _ in range(min(blocks, COPIERS))]:
                    done.result()
        with self._changed:
            self._changed.wait_for(lambda: self._void or self._written >= self._kept)

    def cancel(self) -> None:
        """Give up, unless it is whole already. The buffers may be changed, and are read no more."""
        self._give_up()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
        self._end()

    @property
    def _void(self) -> bool:
        """Whether nothing depends on the buffers any more."""
        return self._over or self._cancelled

    def _copy_last(self) -> None:
        """Copy blocks from the last on, until the writer is met or there is no memory to spare."""
        while (copy := self._take_last()) is not None:
            try:
                gather_(copy.flat, self._live, copy.start)
            except BaseException:
                self._give_up()
                raise
            with self._changed:
                if self._over:
                    self._spare.give_back(BLOCK)
                else:
                    self._copies[copy.start // BLOCK] = copy
                self._changed.notify_all()

    def _take_last(self) -> Region | None:
        """Room for the next block to copy: None where the rest is to be waited for."""
        with self._changed:
            if self._void or self._kept <= self._begun:
                return None
            start = (self._kept - 1) * BLOCK
            try:
                copy = Region("copy", start, new_block(min(BLOCK, self._live[-1].stop - start)))
                self._spare.take(BLOCK)
            except (InsufficientMemory, OSError):  # the latter: the machine has less than the budget allows
                return None
            self._kept -= 1
            return copy

    def _give_up(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def _begin(self, number: int) -> list[Region]:
        """What the next block is made of, as far as buffers go. Raises: _Cancelled."""
        with self._changed:
            self._begun = number + 1
            self._changed.wait_for(lambda: self._cancelled or self._is_there(number))
            if self._cancelled:
                raise _Cancelled
            return [self._copies[number]] if number in self._copies else self._live

    def _is_there(self, number: int) -> bool:
        return number < self._kept or number in self._copies or number >= self._blocks

    def _done(self, number: int) -> None:
        with self._changed:
            self._written = number + 1
            if self._copies.pop(number, None):
                self._spare.give_back(BLOCK)
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._running, self._over = False, True
            self._spare.give_back(BLOCK * len(self._copies))
            self._copies.clear()
            self._changed.notify_all()
