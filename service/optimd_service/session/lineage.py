"""Which records a session's state is made of: after a rollback, not all that came before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from optimd_service.types import Version

ROLLED_BACK = "rolled_back"
"""The kind of a record behind which a session stands as it stood before, under a version of its own."""


class Mark(NamedTuple):
    """Where one record leaves a session.

    Attributes:
      after: the record that it follows; behind a rollback, the one that was returned to.
      between: whether it is one of several pushes that make a step together, and not the last.
    """

    seq: int
    version: Version
    after: int
    between: bool = False


class Lineage:
    """The records that are kept, and which of them lead to which.

    Args:
      records: number, kind and fields of each, in order.
    """

    def __init__(self, records: Iterable[tuple[int, str, Mapping[str, Any]]] = ()) -> None:
        self._marks: dict[int, Mark] = {}
        for seq, kind, fields in records:
            after = fields["to"] if kind == ROLLED_BACK else seq - 1
            between = fields.get("receipt", {}).get("outcome") == "buffered"
            self._marks[seq] = Mark(seq, Version(*fields["version"]), after, between)

    def __len__(self) -> int:
        return len(self._marks)

    def path(self, seq: int | None = None) -> Iterator[Mark]:
        """The records that lead to ``seq``, or to the present, the newest first, as far as they are kept."""
        mark = self._marks.get(max(self._marks, default=0) if seq is None else seq)
        while mark is not None:
            yield mark
            mark = self._marks.get(mark.after)

    def reachable(self, checkpoints: Collection[int]) -> dict[int, Version]:
        """The records to which a checkpoint leads, and where each leaves the session.

        Args:
          checkpoints: their numbers.
        """
        there = set(checkpoints)
        for mark in self._marks.values():
            if mark.after in there:
                there.add(mark.seq)
        return {mark.seq: mark.version for mark in self._marks.values() if mark.seq in there}

    def find(self, step: int, generation: int | None, checkpoints: Collection[int]) -> int | None:
        """The last record that leaves the session at ``step`` and can be reached; None where none does.

        Args:
          generation: which of several versions; without it, of those that lead to the present.
        """
        reachable = self.reachable(checkpoints)
        marks = self.path() if generation is None else reversed(self._marks.values())
        found = [
            mark
            for mark in marks
            if mark.seq in reachable and mark.version.step == step and generation in {None, mark.version.generation}
        ]
        # Pushes that wait for others belong to the step that they are to make.
        return next((mark.seq for mark in found if not mark.between), found[0].seq if found else None)

    def shared(self, seq: int, step: int) -> int:
        """The last step that leads to the present and to ``seq``, where the session stood at ``step``, as well."""
        present = {mark.seq for mark in self.path()}
        theirs = list(self.path(seq))
        common = next((mark.version.step for mark in theirs if mark.seq in present), None)
        if common is None:  # the records that would say are gone
            common = theirs[-1].version.step - 1 if theirs else step
        return min(common, step)

    def bases(self, checkpoints: Collection[int], seq: int) -> list[int]:
        """The checkpoints from which record ``seq`` can be reached, the newest first."""
        leading = [seq, *(mark.after for mark in self.path(seq))]
        return [base for base in leading if base in checkpoints]

    def between(self, base: int, seq: int) -> list[int]:
        """The records to be done again behind a checkpoint that leads to ``seq``, in order."""
        leading = []
        for mark in self.path(seq):
            if mark.seq == base:
                break
            leading.append(mark.seq)
        return leading[::-1]
