"""The gradients of a push, kept in the form in which they were stepped with: to be stepped with again."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from optimd_service.store.contract import Entry, StoredState
from optimd_service.types import Layout, Span
from optimd_service.wire.dtypes import DTYPE_NAMES, WIRE_DTYPES
from optimd_service.wire.flat import flat_bytes
from optimd_service.wire.rows import Rows

INDEX_BYTES = 8


class Keeping:
    """The gradients of one push on their way into a store that keeps them.

    Attributes:
      payload: how they lie there, a JSON object.
    """

    def __init__(self, state: StoredState) -> None:
        self._state = state
        self._host: torch.Tensor | None = None
        self._gave_up = False
        self._lock = threading.Lock()
        self.entry: Entry | None = None
        self.payload: dict[str, Any] = {}

    def begin(self, numel: int, dtype: torch.dtype, rows: Mapping[str, torch.Tensor] | None = None) -> None:
        """Take room for ``numel`` elements, and for the numbers of rows, before the first of them is there.

        Raises: DiskFull, JournalFailed.
        """
        counts = {name: len(numbers) for name, numbers in (rows or {}).items()}
        self.payload = {"dtype": DTYPE_NAMES[dtype], "numel": numel, "rows": counts}
        self.entry = self._state.enter(numel * dtype.itemsize + INDEX_BYTES * sum(counts.values()))

    def watch(self, buffer: torch.Tensor, span: Span, numel: int) -> None:
        """Elements ``span`` of ``numel`` have come into ``buffer``, shape [pushable]; may be called by several threads.

        Raises: DiskFull, JournalFailed.
        """
        with self._lock:
            if self._gave_up:
                return
            if self.entry is None:
                self.begin(numel, buffer.dtype)
            try:
                self._write(buffer, span)
            except ValueError:  # in an order in which it cannot be summed up: it is kept when all of it is there
                self._gave_up = True
                self.discard()

    def _write(self, buffer: torch.Tensor, span: Span) -> None:
        if self.entry is not None:
            self.entry.write(span.start * buffer.itemsize, flat_bytes(buffer[span.start : span.stop]))

    def keep(self, grads: torch.Tensor, rows: Mapping[str, torch.Tensor] | None = None) -> None:
        """Keep gradients that have landed.

        Args:
          grads: shape [numel], on any device.   rows: tensor name → the numbers of the rows that came of it, int64.

        Raises: DiskFull, JournalFailed.
        """
        self.begin(grads.numel(), grads.dtype, rows)
        self._host = grads if grads.is_cpu else grads.to("cpu")
        self._write(self._host, Span(0, grads.numel()))
        if rows and self.entry is not None:
            numbers = torch.cat(list(rows.values()))
            self.entry.write(grads.nbytes, memoryview(numbers.numpy().tobytes()))

    def settle(self) -> None:
        """Wait until the gradients may be worked on. Raises: DiskFull, JournalFailed."""
        if self.entry is not None:
            self.entry.written()

    def discard(self) -> None:
        """The push has not been committed, and will not be; after a commit this does nothing."""
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.discard()


@dataclass(frozen=True)
class KeptPush:
    """A push that was kept: a body that has come again, and what has received it.

    Attributes:
      record: the fields of its record.   payload: the bytes of it, which may be worked on.
      norm: of its gradients, if it is known.
    """

    record: Mapping[str, Any]
    payload: memoryview
    norm: float | None = None
    quick: bool = True

    @cached_property
    def buffer(self) -> torch.Tensor:
        """The gradients, and the new values of buffers behind them, where they lie in the payload."""
        dtype, numel = WIRE_DTYPES[self.record["payload"]["dtype"]], self.record["payload"]["numel"]
        return torch.frombuffer(self.payload, dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)

    def digest(self) -> bytes:
        return bytes.fromhex(self.record["digest"] or "")

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.record["facts"].items() if value is not None}

    def holds_buffers(self, layout: Layout) -> bool:  # noqa: ARG002  the record says so
        return bool(self.record["buffers"])

    def rows(self, layout: Layout) -> Mapping[str, Rows]:
        counts: Mapping[str, int] = self.record["payload"]["rows"]
        if not counts:
            return {}
        # A push without buffers ends before them: only what was trained is looked at.
        values = _landed(layout.trained, counts).views(self.buffer)
        found, at = {}, self.buffer.nbytes
        for name, count in counts.items():
            numbers = torch.tensor(self.payload[at : at + INDEX_BYTES * count].cast("q"), dtype=torch.int64)
            found[name] = Rows(numbers, values[name])
            at += INDEX_BYTES * count
        return found

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:  # noqa: ARG002
        if flat is not self.buffer:  # which is where they are stepped with, unless that is another device's memory
            flat[: len(self.buffer)].copy_(self.buffer)


def _landed(layout: Layout, counts: Mapping[str, int]) -> Layout:
    """Of tensors of which so many rows came."""
    tensors = (
        replace(tensor, shape=(counts[tensor.name], *tensor.shape[1:])) if tensor.name in counts else tensor
        for tensor in layout.tensors
    )
    return Layout(tuple(tensors), layout.dtype)
