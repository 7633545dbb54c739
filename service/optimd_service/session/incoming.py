"""The gradients of one push, from their first byte on."""

from __future__ import annotations

import torch

from optimd_service.session.judged import Judged
from optimd_service.session.kept import Keeping
from optimd_service.types import Span
from optimd_service.wire.body import LARGE
from optimd_service.wire.landing import Landing


class Incoming:
    """Where they lie, and what was seen of them on the way, in one body or in several.

    Gradients in bfloat16 beside weights in float32 stay as they came where they are only read: the update widens them,
    element by element. Where they are written first, by clipping for instance, they are widened as they arrive.

    Args:
      buffer: shape [pushable]; the session's.
      trained: how many of its elements are gradients.
      widens: whether the buffer's own dtype is wanted in any case, as it is where only a part may be of another.
      keeping: takes what comes for a store that keeps it.

    Attributes:
      buffer: where the push lies, in the dtype in which it lies.
    """

    def __init__(self, buffer: torch.Tensor, trained: int, *, widens: bool, keeping: Keeping | None = None) -> None:
        self.buffer = buffer
        self._trained = trained
        self._widens = widens
        self.keeping = keeping
        self._kept = 0
        self._judged = Judged(buffer[:trained])

    def place(self, landing: Landing) -> torch.Tensor:
        """Where a payload is to be received."""
        whole = len(landing.runs) == 1 and landing.runs[0].dtype is torch.bfloat16 and not landing.runs[0].start
        if whole and self.buffer.dtype is torch.float32 and not self._widens:
            self.buffer = self.buffer.view(torch.bfloat16)[: len(self.buffer)]
            self._judged = Judged(self.buffer[: self._trained])
        if landing.payload_bytes >= LARGE:  # smaller ones come where nobody may wait for a disk
            self._kept = max((run.stop for run in landing.runs), default=0)
        return self.buffer

    def expect(self, span: Span) -> None:
        """Elements ``span`` are about to be written, perhaps over others that came before."""
        self._judged.expect(span)

    def watch(self, span: Span) -> None:
        """Elements ``span`` have come. Raises: DiskFull, JournalFailed."""
        self._judged.watch(span)
        if self.keeping is not None and self._kept:
            self.keeping.watch(self.buffer, span, self._kept)

    @property
    def norm(self) -> float | None:
        """The gradients' 2-norm, if they were judged while they arrived."""
        return self._judged.norm
