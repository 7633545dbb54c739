"""The number of the newest record that was acknowledged: what tells a torn tail from a lost one."""

from __future__ import annotations

import mmap
from pathlib import Path

from optimd_service.store.disk import PAGE, File, sync_folder


class Mark:
    """A number in a small file, as the process has left it.

    It is never synced: a kill does not lose it, and a power cut leaves an older one, which is true as well.

    Args:
      path: of the file, made if it is not there.

    Raises: OSError.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists() or path.stat().st_size < PAGE:
            _begin(path)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), PAGE)
        # One machine word: a kill cannot leave half of it.
        self._word = memoryview(self._memory).cast("Q")

    @property
    def seq(self) -> int:
        return self._word[0]

    def set(self, seq: int) -> None:
        self._word[0] = seq

    def close(self) -> None:
        """A second call does nothing."""
        self._word.release()
        self._memory.close()


def _begin(path: Path) -> None:
    """A page of zeros, on disk before it is mapped: there is no way to say that memory finds the disk full."""
    file = File(path, new=True)
    try:
        file.write(0, memoryview(bytes(PAGE)))
        file.sync()
    finally:
        file.close()
    sync_folder(path.parent)
