"""How far the history has written what a session's records say: until then they are kept, for a crash."""

from __future__ import annotations

from collections import deque

from optimd_service.history import History


class Telling:
    """Marks, set while nobody steps, and which of them the history has passed."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._marks: deque[tuple[int, int]] = deque()
        self._written = 0

    def mark(self, seq: int) -> None:
        """All that the records up to ``seq`` say has been given to the history."""
        self._marks.append((seq, self._history.recorded()))

    def written(self) -> int:
        """A record up to which all of it is in the database; 0 before the first mark is passed."""
        while self._marks and self._history.is_written(self._marks[0][1]):
            self._written = self._marks.popleft()[0]
        return self._written
