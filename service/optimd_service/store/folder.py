"""What one session keeps on disk: a folder with its checkpoints and perhaps a journal."""

from __future__ import annotations

import shutil
from concurrent.futures import Executor
from pathlib import Path

from optimd_service.store.checkpoint import PARAMS, STATE, Checkpoint
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.store.contract import Working
from optimd_service.store.disk import sync_folder, translated
from optimd_service.store.journal import Journal
from optimd_service.store.saving import Spare
from optimd_service.types import Buffers

REMOVED = ".removed"
MOST_UNTOLD_BYTES = 2**30
"""Of a session's journal, beyond what its checkpoints need."""


class SessionFolder:
    """One session's folder, open.

    Attributes:
      checkpoints: of the session.
      journal: of the session, where each commit is kept.
    """

    def __init__(self, path: Path, journal: Journal | None, spare: Spare) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path, spare)
        self.journal = journal

    @classmethod
    def new(cls, path: Path, writers: Executor, spare: Spare, *, journaled: bool) -> SessionFolder:
        """Make it.

        Args:
          writers: threads that write large records.   spare: where checkpoints take memory from for a while.

        Raises: DiskFull, JournalFailed.
        """
        with translated():
            path.mkdir(parents=True)
            sync_folder(path.parent)
        return cls(path, Journal.open(path, writers) if journaled else None, spare)

    @classmethod
    def found(cls, path: Path, writers: Executor, spare: Spare) -> SessionFolder:
        """Open one that is there. Raises: JournalCorrupt, DiskFull, JournalFailed."""
        journaled = any(path.glob("journal-*"))
        return cls(path, Journal.open(path, writers) if journaled else None, spare)

    def sizes(self, seq: int) -> Buffers:
        """Of the buffers that a checkpoint holds beside the weights. Raises: CheckpointCorrupt, JournalFailed."""
        buffers = self.checkpoints.info(seq).buffers
        return {name.removeprefix(STATE): size for name, size in buffers.items() if name != PARAMS}

    def load(self, seq: int, working: Working) -> Checkpoint:
        """Read a checkpoint into buffers of the sizes that it has.

        Raises: CheckpointCorrupt, JournalFailed; what the buffers hold means nothing then.
        """
        return self.checkpoints.load(
            seq, lambda name, _: working.params if name == PARAMS else working.state[name.removeprefix(STATE)]
        )

    def retain(self, keep: int, told: int) -> None:
        """Keep the newest ``keep`` checkpoints, those with a label, and the journal behind the oldest of the newest.

        Args:
          told: what the records up to this one say is told elsewhere; the others are kept, up to MOST_UNTOLD_BYTES.

        Raises: JournalFailed.
        """
        self.checkpoints.retain(keep)
        if self.journal is not None:
            needed = min([info.seq for info in self.checkpoints.infos()][-keep:], default=0)
            self.journal.drop_before(min(needed, told))
            self.journal.drop_before(needed, MOST_UNTOLD_BYTES)

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def close(self) -> None:
        """Nothing more is written."""
        if self.journal is not None:
            self.journal.close()

    def remove(self) -> None:
        """Give up all that the session kept. What is left if this is cut short is removed at the next start."""
        self.close()
        gone = self.path.with_name(self.path.name + REMOVED)
        with translated():
            self.path.rename(gone)
            sync_folder(gone.parent)
            shutil.rmtree(gone)


def found_in(folder: Path) -> list[str]:
    """The ids of the sessions kept in a folder; what sessions were removed is cleared away."""
    folder.mkdir(parents=True, exist_ok=True)
    for gone in folder.glob(f"*{REMOVED}"):
        shutil.rmtree(gone)
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
