"""Sessions in memory, each with a folder on disk; or in memory alone, if that is all that is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from optimd_service.store.contract import StoredState
from optimd_service.store.device import DeviceStore
from optimd_service.store.durable import DurableState
from optimd_service.store.folder import SessionFolder, found_in
from optimd_service.types import Buffers, BufferSize, Durability, Layout

# Of large records, for all sessions: a disk is as fast with two as with many.
WRITERS = 4


class Shape(NamedTuple):
    """What a session needs to be taken into memory."""

    layout: Layout
    grads: BufferSize
    device: str


class DurableStore:
    """Creates, finds and drops sessions.

    Args:
      memory: where they live.
      path: the folder that holds a folder for each.
    """

    def __init__(self, memory: DeviceStore, path: Path) -> None:
        self._memory = memory
        self._path = path
        self._folders: dict[str, SessionFolder] = {}
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="optimd-journal")

    def create(
        self,
        session_id: str,
        layout: Layout,
        buffers: Buffers,
        grads: BufferSize,
        device: str = "cpu",
        durability: Durability = "memory",
    ) -> StoredState:
        """As the contract has it. Raises: DiskFull, JournalFailed too."""
        memory = self._memory.create(session_id, layout, buffers, grads, device)
        if durability == "memory":
            return memory
        folder = SessionFolder.new(
            self._path / session_id, self._writers, self._memory.spare, journaled=durability == "step"
        )
        self._folders[session_id] = folder
        return DurableState(memory, folder)

    def ids(self) -> list[str]:
        """Of the sessions on disk, the oldest first."""
        return found_in(self._path)

    def folder(self, session_id: str) -> SessionFolder:
        """Open what a session has on disk. Raises: JournalCorrupt, JournalFailed."""
        folder = self._folders[session_id] = SessionFolder.found(
            self._path / session_id, self._writers, self._memory.spare
        )
        return folder

    def open(self, session_id: str, seq: int, shape: Callable[[Mapping[str, Any]], Shape]) -> DurableState:
        """Take a session into memory as a checkpoint has it.

        Args:
          seq: of the checkpoint.   shape: of a session that stands so.

        Raises: CheckpointCorrupt, InsufficientMemory, JournalFailed, and what ``shape`` raises.
        """
        folder = self._folders[session_id]
        checkpoint = folder.checkpoints.load(seq)
        found = shape(checkpoint.standing)
        memory = self._memory.adopt(session_id, *found, checkpoint.working, checkpoint.version, checkpoint.remembered)
        return DurableState(memory, folder, seq)

    def drop(self, session_id: str) -> None:
        """Forget a session, its memory and its folder."""
        self._memory.drop(session_id)
        folder = self._folders.pop(session_id, None)
        if folder is not None:
            folder.remove()

    def close(self) -> None:
        """Nothing more is kept."""
        for folder in self._folders.values():
            folder.close()
        self._writers.shutdown()
