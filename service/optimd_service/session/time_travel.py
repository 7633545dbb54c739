"""What takes a session through time: checkpoints that are asked for, and the way back."""

from __future__ import annotations

from optimd_service.errors import Problem, SessionNotFound, StepNotRetained
from optimd_service.session.moment import Moment
from optimd_service.session.past import Kept
from optimd_service.session.preconditions import Match
from optimd_service.session.session import Session
from optimd_service.session.upkeep import RolledBack, Upkeep, require_kept
from optimd_service.store.checkpoint import CheckpointInfo


async def kept(session: Session) -> Kept:
    """What a session can go back to.

    Raises: InvalidField where nothing is kept, JournalCorrupt, JournalFailed.
    """
    upkeep = require_kept(session.upkeep)
    async with upkeep.alone:
        session.check_alive()
        return await upkeep.kept()


async def checkpoint(session: Session, label: str | None = None) -> CheckpointInfo:
    """Keep a session as it stands now.

    Raises: InvalidField where nothing is kept, SessionNotFound, StateDamaged, DiskFull, JournalFailed.
    """
    upkeep = require_kept(session.upkeep)
    async with upkeep.alone:
        info = await session.save(upkeep, label)
    if info is None:
        raise SessionNotFound(f"The session {session.id} has been deleted.")
    session.event("checkpoint", {"etag": info.version.etag, "label": label})
    return info


async def remove_checkpoint(session: Session, label: str) -> None:
    """Remove the checkpoint of a label. If the session stands on it, another is made first.

    Raises: InvalidField where nothing is kept, StepNotRetained, SessionNotFound, DiskFull, JournalFailed,
    JournalCorrupt.
    """
    upkeep = require_kept(session.upkeep)
    async with upkeep.alone:
        session.check_alive()
        if not await upkeep.labelled(label):
            raise StepNotRetained(f"There is no checkpoint of the label {label!r}; GET …/checkpoints lists them.")
        if await upkeep.is_needed(label):
            await session.save(upkeep, unlabelled=label)
        await upkeep.remove(label)
    session.event("checkpoint_removed", {"label": label})


async def roll_back(session: Session, moment: Moment, match: Match | None) -> RolledBack:
    """Return to where a session stood: weights, state, schedule and hyperparameters, as a new version.

    Raises: InvalidField where nothing is kept, StaleStep, SessionNotFound, StepNotRetained, JournalCorrupt,
    CheckpointCorrupt, InsufficientMemory, DiskFull, JournalFailed; it stands where it stood then.
    """
    upkeep = require_kept(session.upkeep)
    journaled = session.stored.records
    async with upkeep.alone, session.replacing(match):
        if not journaled and upkeep.behind:
            await session.save(upkeep, retain=False)  # a way back to where it stands, should this fail
        async with session.writing():
            returned = await session.lane.run(upkeep.roll_back, moment)
            session.standing = returned.standing
            session.hold_anew()
            if not journaled:  # nothing says so yet but what is in memory
                await _keep(session, upkeep)
        session.history.supersede(session.id, returned.behind, returned.at)
        for row in await upkeep.rows():
            if row.receipt.step > returned.behind:  # the session had left it, and is there again
                session.history.step(row)
    session.moved("rolled_back", {"from": returned.before.etag, "to": returned.version.etag})
    return returned


async def _keep(session: Session, upkeep: Upkeep) -> None:
    """Keep a session where it was returned to, or let it stand where the checkpoint before has it."""
    saving = await session.lane.run(upkeep.save, session.standing)
    try:
        await upkeep.finish(saving, session.version.step)
    except Problem:
        session.standing = await session.lane.run(upkeep.rebuild)
        session.hold_anew()
        raise
