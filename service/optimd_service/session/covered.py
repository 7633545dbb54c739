"""Which elements of a buffer have come."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from optimd_service.types import Span


class Covered:
    """A set of elements, kept as few stretches: what comes side by side is one, in whatever order it comes."""

    def __init__(self) -> None:
        self._stretches: list[Span] = []  # in order, with gaps between them

    def add(self, span: Span) -> None:
        """Elements ``span`` have come, for the first time or again."""
        first, last = self._met_by(span)
        met = [span, *self._stretches[first:last]]
        self._put(first, last, [Span(min(s.start for s in met), max(s.stop for s in met))])

    def remove(self, span: Span) -> None:
        """Elements ``span`` are not there, or no longer."""
        if span.start == span.stop:
            return
        first, last = self._met_by(span)
        met = self._stretches[first:last]
        before = [Span(s.start, min(s.stop, span.start)) for s in met]
        behind = [Span(max(s.start, span.stop), s.stop) for s in met]
        self._put(first, last, [*before[:1], *behind[-1:]])

    def holds(self, span: Span) -> bool:
        """Whether all of ``span`` are there."""
        first, last = self._met_by(span)
        return any(s.start <= span.start and span.stop <= s.stop for s in self._stretches[first:last])

    def _met_by(self, span: Span) -> tuple[int, int]:
        """Which of the stretches overlap ``span`` or touch it: from the first index to the second."""
        first = bisect_left(self._stretches, span.start, key=lambda s: s.stop)
        return first, max(first, bisect_right(self._stretches, span.stop, key=lambda s: s.start))

    def _put(self, first: int, last: int, stretches: Iterable[Span]) -> None:
        self._stretches[first:last] = [s for s in stretches if s.start < s.stop]
