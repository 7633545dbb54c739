"""A session's state made again from what its folder holds: a checkpoint, and the records behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime

from optimd_service.errors import CheckpointCorrupt, StepNotRetained
from optimd_service.optim import on_device
from optimd_service.optim.update import Here, Workplace
from optimd_service.session.lineage import ROLLED_BACK, Lineage
from optimd_service.session.plan import Plan
from optimd_service.session.push import PUSH
from optimd_service.session.replay import replay, row_of
from optimd_service.session.standing import Standing
from optimd_service.store.contract import StoredState
from optimd_service.store.durable import DurableState
from optimd_service.store.folder import SessionFolder
from optimd_service.types import StepRow

log = logging.getLogger("optimd")


def place_of(plan: Plan, lane: Workplace) -> Workplace:
    """Where a session's arithmetic is done: wherever it is, the bits are the same."""
    if plan.policy.on_device:
        return Here(on_device.BLOCK)
    return Here() if plan.tiny else lane


def lineage_of(folder: SessionFolder) -> Lineage:
    """The records that a session is made of. Raises: JournalCorrupt, JournalFailed."""
    journal = folder.journal
    if journal is None:
        return Lineage()
    return Lineage((meta.seq, meta.kind, meta.fields) for meta in journal.metas(journal.begins - 1))


def newest(folder: SessionFolder) -> int:
    """The last record, or the last checkpoint where there are no records."""
    return folder.journal.seq if folder.journal is not None else max(folder.checkpoints.seqs(), default=0)


def rollbacks_of(folder: SessionFolder) -> Iterator[tuple[int, datetime]]:
    """The last step that counts still behind each rollback that is kept, and when it was, in order."""
    journal = folder.journal
    for meta in () if journal is None else journal.metas(journal.begins - 1):
        if meta.kind == ROLLED_BACK:
            yield meta.fields["behind"], datetime.fromisoformat(meta.fields["at"])


def rows_of(folder: SessionFolder, lineage: Lineage) -> Iterator[StepRow]:
    """What history is to say of the steps whose records are kept, and lead to the present."""
    journal = folder.journal
    wanted = {mark.seq for mark in lineage.path()}
    for meta in () if journal is None else journal.metas(journal.begins - 1):
        row = row_of(meta.fields) if meta.kind == PUSH and meta.seq in wanted else None
        if row is not None:
            yield row


def rebuild_(session: str, state: DurableState, lane: Workplace, lineage: Lineage, seq: int) -> Standing:
    """Bring ``state`` to where record ``seq`` left it, and return how the session stood then.

    Raises: StepNotRetained, JournalCorrupt, CheckpointCorrupt, JournalFailed, InsufficientMemory; the state is damaged
    then.
    """
    folder = state.folder
    refused: CheckpointCorrupt | None = None
    for base in lineage.bases(folder.checkpoints.seqs(), seq):
        try:
            standing = Standing.from_json(state.load(base))
        except CheckpointCorrupt as error:
            log.error("session %s: %s", session, error.detail)  # noqa: TRY400  said to whoever reads the log, not raised
            refused = error
            continue
        return replay_onto(session, standing, state, lane, lineage, base, seq)
    raise refused or StepNotRetained(f"Nothing that is kept leads back to record {seq} of this session.", seq=seq)


def replay_onto(
    session: str, standing: Standing, state: DurableState, lane: Workplace, lineage: Lineage, base: int, seq: int
) -> Standing:
    """Do again what came behind a checkpoint that has been loaded, up to record ``seq``.

    Raises: JournalCorrupt, JournalFailed; the state is damaged then.
    """
    try:
        with state.replaying():
            standing = replay_behind(session, standing, state, lane, state.folder, lineage, base, seq)
            # What is not kept, since it means nothing to another process, is made anew.
            state.commit(state.begin(standing.plan.buffers), state.version, {})
    except BaseException:
        state.damage()
        raise
    state.seq = seq
    return standing


def replay_behind(
    session: str,
    standing: Standing,
    state: StoredState,
    lane: Workplace,
    folder: SessionFolder,
    lineage: Lineage,
    base: int,
    seq: int,
) -> Standing:
    """Do to ``state``, which keeps no records now, what the records of ``folder`` between a checkpoint and ``seq`` say.

    Raises: JournalCorrupt, JournalFailed.
    """
    wanted = set(lineage.between(base, seq))
    if not wanted or folder.journal is None:
        return standing
    for record in folder.journal.records(min(wanted) - 1, seq):
        if record.seq in wanted:
            payload = record.payload or memoryview(b"")
            place = place_of(standing.plan, lane)
            standing = replay(session, standing, state, place, record.kind, record.fields, payload)
    return standing
