"""What keeps a session on disk beside its steps: checkpoints, and the way back to what they and the journal hold."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

from optimd_service.errors import InvalidField, Problem
from optimd_service.session.arithmetic import Lane
from optimd_service.session.checkpointing import Checkpointing
from optimd_service.session.lineage import ROLLED_BACK, Lineage
from optimd_service.session.moment import Moment
from optimd_service.session.past import Kept, Past, stands_on
from optimd_service.session.plan import TRANSIENT
from optimd_service.session.rebuilding import lineage_of, newest, rebuild_, rows_of
from optimd_service.session.standing import Standing
from optimd_service.session.telling import Telling
from optimd_service.store.checkpoint import CheckpointInfo
from optimd_service.store.contract import Record
from optimd_service.store.durable import DurableState
from optimd_service.store.saving import Saving
from optimd_service.types import StepRow, Version, utc_now

AFTER_FAILURE_S = 10.0

log = logging.getLogger("optimd")


class RolledBack(NamedTuple):
    """What became of a rollback.

    Attributes:
      before: where the session stood.   version: where it stands.
      behind: the last step that led to both.   at: when it was.
      standing: how it stands.
    """

    before: Version
    version: Version
    behind: int
    at: datetime
    standing: Standing


class Upkeep:
    """Keeps one session.

    Args:
      lane: computes for it.   disk: threads that write checkpoints.
      wanted: when checkpoints are made, and how many are kept.
      telling: knows which records the history still waits for.

    Attributes:
      alone: held by whoever makes a checkpoint, or needs what is kept to stay.
    """

    def __init__(
        self, session: str, state: DurableState, lane: Lane, disk: Lane, wanted: Checkpointing, telling: Telling
    ) -> None:
        self.alone = asyncio.Lock()
        self._session = session
        self._state = state
        self._lane = lane
        self._disk = disk
        self._wanted = wanted
        self._telling = telling
        self._seq = state.seq
        self._step = state.version.step
        self._at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._making = False

    @property
    def state(self) -> DurableState:
        return self._state

    @property
    def behind(self) -> bool:
        """Whether there were commits since the last checkpoint."""
        return self._state.seq != self._seq

    def due_in(self, held_bytes: int) -> float | None:
        """Seconds until the next checkpoint is to be made, by what has come since the last; None without a time."""
        if not self.behind:
            return None
        steps, seconds = self._wanted.steps, self._wanted.seconds
        if steps is not None and self._state.version.step - self._step >= steps:
            return 0
        if seconds is not None:
            return max(0.0, self._at + seconds - time.monotonic())
        return 0 if steps is None and self._state.stretch_bytes > self._wanted.stretch(held_bytes) else None

    def look_after(self, checkpoint: Callable[[], Awaitable[None]], held_bytes: int) -> None:
        """See to it that a checkpoint is made when it is due; on the event loop, after a commit.

        Args:
          checkpoint: makes one.
        """
        due_s = self.due_in(held_bytes)
        if due_s is None or self._making or (self._task is not None and due_s > 0):
            return
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._make(checkpoint, due_s, held_bytes))

    async def _make(self, checkpoint: Callable[[], Awaitable[None]], due_s: float | None, held_bytes: int) -> None:
        """Make the next, and one more where steps came meanwhile and it is due, though none may follow."""
        try:
            while due_s is not None:
                await asyncio.sleep(due_s)
                self._making = True
                if not await self.quietly(checkpoint):
                    await asyncio.sleep(AFTER_FAILURE_S)
                self._making = False
                due_s = self.due_in(held_bytes)
        finally:
            if self._task is asyncio.current_task():  # and no other has taken its place
                self._making, self._task = False, None

    async def quietly(self, checkpoint: Callable[[], Awaitable[object]]) -> bool:
        """Make a checkpoint that nobody asked for, and say whether there is one."""
        try:
            await checkpoint()
        except Problem as problem:  # the one before holds, and the journal behind it
            log.warning("session %s: no checkpoint was made: %s", self._session, problem.detail)
            return False
        return True

    async def close(self) -> None:
        """Make none any more, and keep nothing."""
        if self._task is not None:
            self._task.cancel()
        self._state.close()

    def save(self, standing: Standing, label: str | None = None, unlabelled: str | None = None) -> Saving:
        """Begin a checkpoint of what is committed now, to be finished. Raises: StateDamaged."""
        saving = self._state.save(standing.to_json(), label, unlabelled, without=TRANSIENT)
        self._seq, self._step, self._at = self._state.seq, self._state.version.step, time.monotonic()
        self._telling.mark(self._seq)
        return saving

    async def finish(self, saving: Saving, step: int, *, retain: bool = True) -> CheckpointInfo | None:
        """Write a checkpoint of ``step``; None if the session ends.

        Args:
          retain: give up what is not to be kept any more.

        Raises: DiskFull, JournalFailed.
        """

        def write() -> CheckpointInfo | None:
            info = saving.run()
            if info is not None:
                self._state.saved(step)
                if retain:
                    self._state.folder.retain(self._wanted.keep, self._telling.written())
            return info

        try:
            return await self._disk.run(write)
        except Problem:
            self._seq = -1  # there is none of what is committed now
            raise

    async def kept(self) -> Kept:
        """What can be gone back to. Raises: JournalCorrupt, JournalFailed."""
        return await self._disk.run(lambda: Past.read(self._state.folder).kept())

    async def rows(self) -> list[StepRow]:
        """What history is to say of the steps that lead to the present. Raises: JournalCorrupt, JournalFailed."""
        folder = self._state.folder
        return await self._disk.run(lambda: list(rows_of(folder, lineage_of(folder))))

    async def labelled(self, label: str) -> bool:
        """Whether there is a checkpoint of this label."""
        return bool(await self._disk.run(self._state.folder.checkpoints.labelled, label))

    async def is_needed(self, label: str) -> bool:
        """Whether the present would be made again from a checkpoint of this label."""
        folder = self._state.folder
        return await self._disk.run(lambda: stands_on(folder) in folder.checkpoints.labelled(label))

    async def remove(self, label: str) -> None:
        """Remove the checkpoints of a label. Raises: JournalFailed."""

        def remove() -> None:
            checkpoints = self._state.folder.checkpoints
            for seq in checkpoints.labelled(label):
                checkpoints.remove(seq)

        await self._disk.run(remove)

    def rebuild(self) -> Standing:
        """Put what is committed on disk in the place of what is in memory. Raises: as ``rebuild_``."""
        folder = self._state.folder
        return rebuild_(self._session, self._state, self._lane, lineage_of(folder), newest(folder))

    def roll_back(self, moment: Moment) -> RolledBack:
        """Return to where the session stood, as a version of its own.

        What is committed now must be on disk: if anything fails, it is read back.

        Raises: StepNotRetained, JournalCorrupt, CheckpointCorrupt, InsufficientMemory, DiskFull, JournalFailed; it
        stands where it stood before then, or is damaged.
        """
        past = Past.read(self._state.folder)
        seq = past.find(moment)
        try:
            return self._return_to(past.lineage, seq)
        except Exception:
            self.rebuild()
            raise

    def _return_to(self, lineage: Lineage, seq: int) -> RolledBack:
        before, last = self._state.version, max(self._state.seq, newest(self._state.folder))
        standing = rebuild_(self._session, self._state, self._lane, lineage, seq)
        version = Version(self._state.version.step, before.generation + 1)
        returned = RolledBack(before, version, lineage.shared(seq, version.step), utc_now(), standing)
        self._state.seq = last
        fields = {"version": version, "to": seq, "behind": returned.behind, "at": returned.at.isoformat()}
        record = Record(ROLLED_BACK, fields) if self._state.records else None
        self._state.commit(self._state.begin({}), version, {}, record)
        return returned


def require_kept(upkeep: Upkeep | None) -> Upkeep:
    """Raises: InvalidField for a session of which nothing is kept."""
    if upkeep is None:
        raise InvalidField(
            "Nothing is kept of the past of this session, in memory alone or in Redis; create one with storage.backend "
            "device, and durability step or checkpoint.",
            field="durability",
        )
    return upkeep
