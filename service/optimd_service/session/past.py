"""What a session can go back to: the checkpoints that are kept, and the records behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from optimd_service.errors import StepNotRetained
from optimd_service.session.lineage import Lineage
from optimd_service.session.moment import Moment
from optimd_service.session.rebuilding import lineage_of, newest
from optimd_service.store.checkpoint import CheckpointInfo
from optimd_service.store.folder import SessionFolder


class Kept(NamedTuple):
    """What is kept of a session.

    Attributes:
      retained: first and last step of each stretch of steps that can be returned to.
    """

    checkpoints: list[CheckpointInfo]
    retained: list[tuple[int, int]]


class Past(NamedTuple):
    """A session's past as its folder holds it now.

    Attributes:
      lineage: of the records.   infos: of the checkpoints whose headers are sound.
    """

    lineage: Lineage
    infos: list[CheckpointInfo]

    @classmethod
    def read(cls, folder: SessionFolder) -> Past:
        """Raises: JournalCorrupt, JournalFailed."""
        return cls(lineage_of(folder), folder.checkpoints.infos())

    def find(self, moment: Moment) -> int:
        """The record, or the checkpoint, at which the session stood there.

        Raises: StepNotRetained.
        """
        seq = self._labelled(moment.label) if moment.label is not None else self._at(moment)
        if seq is None:
            raise self.not_retained(moment)
        return seq

    def not_retained(self, moment: Moment) -> StepNotRetained:
        """The error that says so."""
        return StepNotRetained(
            f"Nothing that is kept leads back to {moment.said}; GET …/checkpoints says what does.",
            retained=self.kept().retained,
        )

    def _labelled(self, label: str) -> int | None:
        return next((info.seq for info in self.infos if label in info.labels), None)

    def _at(self, moment: Moment) -> int | None:
        step, generation = moment.step or 0, moment.generation
        seq = self.lineage.find(step, generation, [info.seq for info in self.infos])
        if seq is not None:
            return seq
        there = (info for info in self.infos if info.version.step == step)
        return max((info.seq for info in there if generation in {None, info.version.generation}), default=None)

    def kept(self) -> Kept:
        """All of it."""
        reachable = self.lineage.reachable([info.seq for info in self.infos])
        steps = {mark.version.step for mark in self.lineage.path() if mark.seq in reachable}
        return Kept(self.infos, list(_stretches(steps | {info.version.step for info in self.infos})))


def _stretches(steps: Iterable[int]) -> Iterable[tuple[int, int]]:
    """First and last of numbers that follow one another."""
    first = last = None
    for step in sorted(steps):
        if first is None or last is None:
            first = step
        elif step != last + 1:
            yield first, last
            first = step
        last = step
    if first is not None and last is not None:
        yield first, last


def stands_on(folder: SessionFolder) -> int | None:
    """The checkpoint from which the present would be made again. Raises: JournalCorrupt, JournalFailed."""
    past = Past.read(folder)
    return next(iter(past.lineage.bases([info.seq for info in past.infos], newest(folder))), None)
