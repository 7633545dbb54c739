"""A session taken into memory again, from what it has on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

from optimd_service.errors import CheckpointCorrupt
from optimd_service.session.arithmetic import Arithmetic, Lane
from optimd_service.session.lineage import Lineage
from optimd_service.session.rebuilding import lineage_of, newest, replay_onto, rollbacks_of, rows_of
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.standing import Standing
from optimd_service.store.durable import DurableState
from optimd_service.store.durable_store import DurableStore, Shape
from optimd_service.types import StepRow, Version

log = logging.getLogger("optimd")


@dataclass(frozen=True)
class Recovered:
    """A session as it stood last."""

    standing: Standing
    state: DurableState
    lane: Lane
    lineage: Lineage

    def rollbacks(self) -> Iterator[tuple[int, datetime]]:
        """The step to which each rollback that is kept went back, and each crash that took steps, and when."""
        return chain(rollbacks_of(self.state.folder), self.standing.fallbacks)

    def rows(self) -> Iterator[StepRow]:
        """What history is to say of the steps that are kept."""
        return rows_of(self.state.folder, self.lineage)


def recover(session: str, store: DurableStore, arithmetic: Arithmetic) -> Recovered | None:
    """Read the newest checkpoint that is sound, and do again what came behind it; None of a session without any.

    Raises: CheckpointCorrupt, JournalCorrupt, InsufficientMemory, JournalFailed.
    """
    folder = store.folder(session)
    lineage, seq, there = lineage_of(folder), newest(folder), folder.checkpoints.seqs()
    if not there and not seq:
        store.drop(session)
        return None
    bases = sorted(there, reverse=True) if folder.journal is None else lineage.bases(there, seq)
    refused = CheckpointCorrupt("None of the checkpoints that lead to the newest step is sound.", file=str(seq))
    for base in bases:
        try:
            return _taken_in(session, store, arithmetic, lineage, base, seq)
        except CheckpointCorrupt as error:
            log.error("session %s: %s", session, error.detail)  # noqa: TRY400  an older one may do
            refused = error
    raise refused


def _taken_in(
    session: str, store: DurableStore, arithmetic: Arithmetic, lineage: Lineage, base: int, seq: int
) -> Recovered:
    drawn: list[Standing] = []

    def shape(said: Mapping[str, Any]) -> Shape:
        drawn.append(Standing.from_json(said))
        plan = drawn[0].plan
        return Shape(plan.layout, plan.grads, plan.policy.device)

    state = store.open(session, base, shape)
    lane = arithmetic.lane(state.layout.numel, waits=state.journaled)
    rehearse(drawn[0].plan)
    standing = replay_onto(session, drawn[0], state, lane, lineage, base, seq)
    if not state.journaled:  # steps of which nothing is left may have been seen: no version is to name two states
        step, generation = state.version
        with state.replaying():
            state.commit(state.begin({}), Version(step, generation + 1), {})
        standing = standing.fell_back(step)
    return Recovered(standing, state, lane, lineage)
