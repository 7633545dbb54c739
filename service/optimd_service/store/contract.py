"""The seam: where a session's committed state lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from optimd_service.types import Buffers, BufferSize, Durability, Layout, Receipt, Version


class Remembered(NamedTuple):
    """What the store keeps of a committed push: enough to answer its retry, and to tell a retry from a mistake."""

    receipt: Receipt
    digest: bytes


class Entry(Protocol):
    """Where the bytes that a commit is made from are kept until it comes; never published without it.

    Bytes are written from the memory they lie in, perhaps later: they stay as they are until ``written`` returns, or
    the commit. A commit may not lack any of them.
    """

    def write(self, at: int, piece: memoryview) -> None:
        """Keep ``piece`` at byte ``at``. Raises: DiskFull, JournalFailed, here or at the next call."""

    def written(self) -> None:
        """Wait until the bytes may change. Raises: DiskFull, JournalFailed."""

    def discard(self) -> None:
        """There will be no commit. A second call does nothing, nor does one after the commit."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a commit was made from: enough to make it again from the state before, and to tell the history of it.

    Attributes:
      kind: what to do to make it again.
      fields: a JSON object.
      entry: what holds the bytes that belong to it, of a store that keeps such.
      standing: the session's own description as it stands after it, a JSON object; None where it stays as it was.
    """

    kind: str
    fields: Mapping[str, Any]
    entry: Entry | None = None
    standing: Mapping[str, Any] | None = None


class Snapshot(Protocol):
    """The weights of exactly one version, unchanged until released."""

    params: torch.Tensor
    version: Version

    def release(self) -> None:
        """Say that they are no longer read. A second call does nothing."""


@dataclass
class Working:
    """The buffers that one update writes, handed out by ``begin`` and published by ``commit``.

    Attributes:
      params: shape [numel]; holds the current weights.
      state: buffer name → flat, as long as was asked for.
      updates: how many updates the moments have seen, torch's per-parameter ``step``.
      started: (group, buffer) of each buffer that an update has written.
      numbers: what is remembered in single numbers, by who remembers it: a group, the schedule, the loss scale.
    """

    params: torch.Tensor
    state: dict[str, torch.Tensor]
    updates: int
    started: set[tuple[str, str]]
    numbers: dict[str, dict[str, float]]


class StoredState(Protocol):
    """One session's committed state: weights, state, version, receipts by key, all of the same step.

    The session gives turns: there is one ``begin`` … ``commit`` at a time, and no ``snapshot`` in between.
    """

    layout: Layout
    grads: torch.Tensor

    @property
    def records(self) -> bool:
        """Whether a commit is to bring its record, and is on disk, or wherever it is kept, when it returns."""

    @property
    def version(self) -> Version:
        """The version that is committed now."""

    @property
    def held_bytes(self) -> int:
        """Memory that weights, gradients and state take."""

    @property
    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        """What is remembered in single numbers, of the version that is committed now; to be read only."""

    @property
    def durable_step(self) -> int:
        """The newest step that a crash now would not lose."""

    def durable_with(self, step: int) -> int:
        """The newest step that a crash would not lose once ``step`` is committed."""

    def enter(self, nbytes: int) -> Entry | None:
        """Take room for the bytes of the next commit, in place of any taken before; None where none are kept.

        Raises: DiskFull, JournalFailed.
        """

    def snapshot(self) -> Snapshot:
        """Hold on to the weights as they are now."""

    def recall(self, key: str) -> Remembered | None:
        """What was committed under this idempotency key, if it is still remembered."""

    def read_state(self) -> Working:
        """The committed state, to be read only, before the next ``begin``."""

    def begin(self, buffers: Buffers) -> Working:
        """Hand out the buffers to write, with at least the ``buffers`` named.

        One that is new, or was of another size, is zero.

        Raises: InsufficientMemory, StateDamaged. Nothing has changed then.
        """

    def commit(
        self,
        working: Working,
        version: Version,
        remember: Mapping[str, Remembered],
        record: Record | None = None,
    ) -> None:
        """Publish what was written, together with the receipts to remember, as ``version``.

        Buffers that ``working.state`` no longer holds are given up.

        Args:
          record: what it was made from, for a store that wants it (``records``).

        Raises: JournalFailed, and nothing has been published then.
        """

    def abandon(self, working: Working, *, written: bool) -> None:
        """Give back what ``begin`` handed out. With ``written``, the update failed half-way."""


class Store(Protocol):
    """Creates and drops the states of sessions."""

    def create(
        self,
        session_id: str,
        layout: Layout,
        buffers: Buffers,
        grads: BufferSize,
        device: str = "cpu",
        durability: Durability = "memory",
    ) -> StoredState:
        """Make room for a session: weights and state at zero, version 0.0.

        Args:
          grads: of the buffer in which pushes arrive.
          device: in whose memory all of them lie.
          durability: what is to outlive the process.

        Raises: InsufficientMemory; InvalidField for a device that is not there; DiskFull, JournalFailed.
        """

    def drop(self, session_id: str) -> None:
        """Forget a session and free its memory."""
