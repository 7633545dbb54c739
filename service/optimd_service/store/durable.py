"""State in memory that outlives the process: kept in a folder of its own, by checkpoints and perhaps a journal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from optimd_service.store.contract import Entry, Record, Remembered, Working
from optimd_service.store.device import DeviceSnapshot, DeviceState
from optimd_service.store.entry import Entry as Written
from optimd_service.store.failpoints import failpoint
from optimd_service.store.folder import SessionFolder
from optimd_service.store.saving import Saving
from optimd_service.types import Buffers, Version

# Of a record, beside its payload.
RECORD_BYTES = 8192


class DurableState:
    """A session's state in memory, and its folder.

    With a journal, a commit is on disk before it is published. Without one it is there with the next checkpoint.

    Attributes:
      seq: how many commits there have been; with a journal, the number of the newest record.
      stretch_bytes: of the records since the last checkpoint was begun.
    """

    def __init__(self, memory: DeviceState, folder: SessionFolder, seq: int = 0) -> None:
        self.folder = folder
        self.seq = seq
        self.stretch_bytes = 0
        self.layout = memory.layout
        self.grads = memory.grads
        self._memory = memory
        self._kept_step = memory.version.step
        self._replaying = False
        self._saving: Saving | None = None
        self._entry: Written | None = None
        self._begins_segment = False
        self._entered = 0

    @property
    def version(self) -> Version:
        return self._memory.version

    @property
    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        return self._memory.numbers

    @property
    def held_bytes(self) -> int:
        return self._memory.held_bytes

    @property
    def damaged(self) -> bool:
        """Whether what is in memory is to be read from disk again."""
        return self._memory.damaged

    @property
    def journaled(self) -> bool:
        """Whether each commit is kept by itself."""
        return self.folder.journal is not None

    @property
    def records(self) -> bool:
        return self.journaled and not self._replaying

    @property
    def durable_step(self) -> int:
        return self.durable_with(self.version.step)

    def durable_with(self, step: int) -> int:
        return step if self.journaled else self._kept_step

    def snapshot(self) -> DeviceSnapshot:
        return self._memory.snapshot()

    def recall(self, key: str) -> Remembered | None:
        return self._memory.recall(key)

    def read_state(self) -> Working:
        return self._memory.read_state()

    def enter(self, nbytes: int) -> Entry | None:
        return self._enter(nbytes) if self.records else None

    def _enter(self, nbytes: int) -> Written:
        journal = self.folder.journal
        assert journal is not None  # noqa: S101  asked for where there is one
        if self._entry is not None:
            self._entry.discard()
        if self._begins_segment:
            journal.start_segment()
            self._begins_segment = False
        self._entry, self._entered = journal.begin(nbytes), nbytes + RECORD_BYTES
        return self._entry

    def begin(self, buffers: Buffers) -> Working:
        if self._saving is not None:
            self._saving.settle()
        return self._memory.begin(buffers)

    def commit(
        self,
        working: Working,
        version: Version,
        remember: Mapping[str, Remembered],
        record: Record | None = None,
    ) -> None:
        if record is not None and self.records:
            said = {} if record.standing is None else {"standing": record.standing}
            entry = self._enter(0) if record.entry is None or self._entry is None else self._entry
            self.seq = entry.commit(record.kind, {**record.fields, **said})
            self.stretch_bytes += self._entered
            failpoint("session.before_publish")
        elif not self.journaled and not self._replaying:
            self.seq += 1
        self._memory.commit(working, version, remember)

    def abandon(self, working: Working, *, written: bool) -> None:
        self._memory.abandon(working, written=written)

    def save(
        self,
        standing: Mapping[str, Any],
        label: str | None = None,
        unlabelled: str | None = None,
        without: Collection[str] = (),
    ) -> Saving:
        """Begin a checkpoint of what is committed now; what is committed behind it begins a new stretch of the journal.

        Whoever asks for it runs it, or cancels it. One at a time.

        Args:
          unlabelled: a label that one of the same moment is not to keep.
          without: buffers that are not kept.

        Raises: StateDamaged.
        """
        read = self.read_state()
        working = replace(read, state={name: flat for name, flat in read.state.items() if name not in without})
        self._begins_segment = self.journaled  # not yet: a push may be on its way
        self.stretch_bytes = 0
        self._saving = self.folder.checkpoints.save(
            self.seq, self.version, working, standing, self._memory.remembered, label, unlabelled
        )
        return self._saving

    def saved(self, step: int) -> None:
        """A checkpoint of ``step`` is on disk."""
        self._kept_step = step

    def load(self, seq: int) -> Mapping[str, Any]:
        """Put the state of a checkpoint in the place of this one, and return the session's standing there.

        Raises: CheckpointCorrupt, InsufficientMemory, JournalFailed; the state may be damaged then.
        """
        if self._saving is not None:
            self._saving.settle()
        working = self._memory.renew(self.folder.sizes(seq))
        try:
            checkpoint = self.folder.load(seq, working)
        except BaseException:
            self._memory.abandon(working, written=True)
            raise
        read = checkpoint.working
        working.updates, working.started, working.numbers = read.updates, read.started, read.numbers
        self._memory.adopt(working, checkpoint.version, checkpoint.remembered)
        self.seq = seq
        self._kept_step = checkpoint.version.step
        return checkpoint.standing

    def damage(self) -> None:
        """Say that what is in memory belongs to no commit."""
        self._memory.abandon(self._memory.read_state(), written=True)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """What is committed inside has been kept before."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def close(self) -> None:
        """Nothing more is kept."""
        if self._entry is not None:
            self._entry.discard()
        if self._saving is not None:
            self._saving.cancel()
        self.folder.close()
