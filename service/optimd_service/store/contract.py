"""The seam: where a session's committed state lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from optimd_service.types import Buffers, BufferSize, Layout, Receipt, Version


class Remembered(NamedTuple):
    """What the store keeps of a committed push: enough to answer its retry, and to tell a retry from a mistake."""

    receipt: Receipt
    digest: bytes


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

    def commit(self, working: Working, version: Version, remember: Mapping[str, Remembered]) -> None:
        """Publish what was written, together with the receipts to remember, as ``version``.

        Buffers that ``working.state`` no longer holds are given up.
        """

    def remember(self, remember: Mapping[str, Remembered]) -> None:
        """Keep receipts of pushes that changed nothing."""

    def abandon(self, working: Working, *, written: bool) -> None:
        """Give back what ``begin`` handed out. With ``written``, the update failed half-way."""


class Store(Protocol):
    """Creates and drops the states of sessions."""

    def create(
        self, session_id: str, layout: Layout, buffers: Buffers, grads: BufferSize, device: str = "cpu"
    ) -> StoredState:
        """Make room for a session: weights and state at zero, version 0.0.

        Args:
          grads: of the buffer in which pushes arrive.
          device: in whose memory all of them lie.

        Raises: InsufficientMemory; InvalidField for a device that is not there.
        """

    def drop(self, session_id: str) -> None:
        """Forget a session and free its memory."""
