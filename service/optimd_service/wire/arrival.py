"""A payload on its way into a flat buffer: received where it belongs, looked at while it is still in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from optimd_service.types import Span
from optimd_service.wire import staging
from optimd_service.wire.digest import BLOCK, BodyDigest
from optimd_service.wire.flat import flat_bytes
from optimd_service.wire.runs import Run

# Where optim's blocks end too, so that a block can be judged as soon as it has come.
PLACE = BLOCK
# Of what is converted.
STAGED = 2**18

Watch = Callable[[Span], None]
"""Told which elements of the flat buffer have just come."""


class Arrival:
    """One payload.

    Args:
      flat: where it belongs, shape [at least the end of every run].
      runs: what the payload is, in its order.
      digest: to be given the bytes that come, if it is wanted.
      watch: told what has come, in the same thread.
    """

    def __init__(self, flat: torch.Tensor, runs: Sequence[Run], digest: BodyDigest | None, watch: Watch | None) -> None:
        self._flat = flat
        self._runs = runs
        self._digest = digest
        self._watch = watch

    def places(self) -> Iterator[memoryview]:
        """Bytes to be filled in turn; one is done with when the next is asked for."""
        if not self._flat.is_cpu:
            yield from self._through_host()
            return
        for run in self._runs:
            yield from self._in_place(run) if run.dtype is self._flat.dtype else self._converted(run)

    def _in_place(self, run: Run) -> Iterator[memoryview]:
        for span in run.cut(PLACE):
            whole = span.stop - span.start == self._flat.numel()
            place = flat_bytes(self._flat if whole else self._flat[span.start : span.stop])
            yield place
            self._came(place, span)

    def _converted(self, run: Run) -> Iterator[memoryview]:
        buffer = torch.empty(min(STAGED, run.stop - run.start), dtype=run.dtype)
        for span in run.cut(STAGED):
            staged = buffer[: span.stop - span.start]
            place = flat_bytes(staged)
            yield place
            self._flat[span.start : span.stop].copy_(staged)
            self._came(place, span)

    def _through_host(self) -> Iterator[memoryview]:
        copies = staging.StreamCopies(self._flat.device, outward=False)
        for run in self._runs:
            ring = staging.Ring(copies, run.stop - run.start, run.dtype)
            for span in run.cut(staging.STAGED):
                staged = ring.next()[: span.stop - span.start]
                place = flat_bytes(staged)
                yield place
                ring.begin(self._flat[span.start : span.stop], staged)
                self._came(place, span)

    def _came(self, place: memoryview, span: Span) -> None:
        if self._digest is not None:
            self._digest.update(place, span)
        if self._watch is not None:
            self._watch(span)
