"""Where a fork begins: a session as it stands now, or as what is kept of it leads back to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import NamedTuple

from optimd_service.errors import CheckpointCorrupt
from optimd_service.session.arithmetic import Lane
from optimd_service.session.branching import copy_, sizes_of
from optimd_service.session.moment import Moment
from optimd_service.session.past import Past
from optimd_service.session.rebuilding import replay_behind
from optimd_service.session.session import Session
from optimd_service.session.standing import Standing
from optimd_service.session.upkeep import require_kept
from optimd_service.store.contract import StoredState
from optimd_service.store.durable import DurableState
from optimd_service.store.folder import SessionFolder
from optimd_service.types import Buffers


class Beginning(NamedTuple):
    """What a fork is filled from.

    Attributes:
      sizes: of the state buffers to make room for, beside the weights.
      fill_: fills a state that has this room, and returns how the session stood.
    """

    sizes: Buffers
    fill_: Callable[[StoredState], Standing]


class Beginnings(NamedTuple):
    """How a fork may be filled.

    Attributes:
      ways: the best first.   lane: in whose threads.
      computes: steps are taken on the way, which have the same bits only where the session takes its own.
    """

    ways: list[Beginning]
    lane: Lane
    computes: bool

    async def fill(self, make: Callable[[Buffers], StoredState]) -> tuple[StoredState, Standing]:
        """Make room for a fork, and fill it.

        Args:
          make: makes room, in place of what it made before.

        Raises: CheckpointCorrupt, when no way is sound; JournalCorrupt, JournalFailed, and what ``make`` raises.
        """

        def take(way: Beginning) -> tuple[StoredState, Standing]:
            state = make(way.sizes)
            return state, way.fill_(state)

        for way in self.ways[:-1]:
            try:
                return await self.lane.run(take, way)
            except CheckpointCorrupt:
                continue
        return await self.lane.run(take, self.ways[-1])


@asynccontextmanager
async def beginnings(session: Session, moment: Moment, disk: Lane) -> AsyncIterator[Beginnings]:
    """Hold a session while a fork is filled from it.

    Raises: SessionNotFound, StateDamaged; of a moment that is past: InvalidField where nothing is kept,
    StepNotRetained, JournalCorrupt, JournalFailed.
    """
    await session.catch_up()
    if moment.is_present(session.version):
        async with session.writing():
            if moment.is_present(session.version):  # still
                yield Beginnings([_present(session)], session.lane, computes=False)
                return
    upkeep = require_kept(session.upkeep)
    async with upkeep.alone:  # so that nothing of it goes meanwhile
        session.check_alive()
        yield Beginnings(await disk.run(_past, session, upkeep.state.folder, moment), disk, computes=True)


def _present(session: Session) -> Beginning:
    working, standing, version = session.stored.read_state(), session.standing, session.version

    def fill_(state: StoredState) -> Standing:
        copy_(state, working, version)
        return standing

    return Beginning(sizes_of(working), fill_)


def _past(session: Session, folder: SessionFolder, moment: Moment) -> list[Beginning]:
    past = Past.read(folder)
    seq = past.find(moment)
    bases = past.lineage.bases([info.seq for info in past.infos], seq)
    return [Beginning(folder.sizes(base), partial(_fill_, session, folder, past, base, seq)) for base in bases]


def _fill_(session: Session, folder: SessionFolder, past: Past, base: int, seq: int, state: StoredState) -> Standing:
    working = state.begin(folder.sizes(base))
    checkpoint = folder.load(base, working)
    read = checkpoint.working
    working.updates, working.started, working.numbers = read.updates, read.started, read.numbers
    state.commit(working, checkpoint.version, {})
    standing = Standing.from_json(checkpoint.standing)
    with state.replaying() if isinstance(state, DurableState) else nullcontext():
        return replay_behind(session.id, standing, state, session.lane, folder, past.lineage, base, seq)
