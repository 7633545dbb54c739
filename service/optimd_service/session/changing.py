"""What changes a session between its steps: weights and state that are put, another optimizer, other settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from optimd_service.errors import StateDamaged
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.description import OptimizerExchange, SessionChange
from optimd_service.session.exchange import Exchange, exchange, exchange_
from optimd_service.session.imported import StateBody, import_state_
from optimd_service.session.plan import Plan
from optimd_service.session.preconditions import Match
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.replaced import PARAMS, Replacing
from optimd_service.session.replay import CHANGED
from optimd_service.session.session import Session
from optimd_service.session.settings import own_values
from optimd_service.session.standing import Standing
from optimd_service.session.writing import writing
from optimd_service.store.contract import Record, Working
from optimd_service.types import Buffers, BufferSize, Version
from optimd_service.wire.received import Received


async def put_params(session: Session, received: Received) -> Version:
    """Replace the weights; inside ``session.replacing``. The optimizer's state stays.

    Raises: InvalidField, TensorMismatch, ShapeMismatch, NonfiniteParams, DiskFull, JournalFailed.
    """

    def put_() -> None:
        # The gradient buffer is ours for this turn: the weights are judged there before they replace the old.
        layout, place = session.layout, session.landing_place
        new = torch.empty(layout.numel, dtype=layout.dtype) if place is None else place
        received.land_(new, layout)
        refuse_nonfinite(new, layout)
        size = BufferSize(layout.numel, layout.dtype)
        _replace(session, lambda working: working.params.copy_(new), {}, {PARAMS: size})
        if session.held is not None:
            session.held.forget()

    return await _replacement(session, put_, "params_put")


async def put_state(session: Session, received: StateBody) -> Version:
    """Replace the optimizer's state; inside ``session.replacing``. The weights stay.

    Raises: InvalidField, NonfiniteParams, DiskFull, JournalFailed.
    """
    buffers = {**session.plan.buffers, **received.sizes}
    return await _replacement(
        session, lambda: _replace(session, import_state_(received), buffers, buffers), "state_put"
    )


async def _replacement(session: Session, put_: Callable[[], None], kind: str) -> Version:
    async with session.writing():
        session.check_unmoved()
        await session.lane.run(put_)
        version = session.version
    session.moved(kind, {"etag": version.etag})
    return version


def _replace(
    session: Session,
    write_: Callable[[Working], Any],
    buffers: Buffers,
    replaced: Buffers,
    standing: Standing | None = None,
) -> None:
    """Publish what ``write_`` writes as the next generation.

    Args:
      buffers: those that it needs.   replaced: those that it writes, the weights as PARAMS.
      standing: of the session with them, if it changes.
    """
    state = session.stored
    step, generation = state.version
    version = Version(step, generation + 1)
    replacing = Replacing(state, replaced) if state.records else None
    try:
        with writing(state, buffers, session.id) as working:
            write_(working)
            record = None if replacing is None else replacing.record(working, version, standing)
            state.commit(working, version, {}, record)
    except StateDamaged as damaged:
        session.mend(damaged)
        raise


async def give_optimizer(session: Session, wanted: OptimizerExchange, match: Match | None) -> tuple[Exchange, Version]:
    """Give a session another optimizer: what became of the old one's state, and where the session stands then.

    Raises: SessionNotFound, StaleStep, InvalidField, InvalidHyperparameter, InsufficientMemory, StateDamaged, DiskFull,
    JournalFailed.
    """
    async with session.replacing(match):
        # While others may still pull.
        await session.lane.run(lambda: rehearse(exchange(session.plan, wanted).after))
        async with session.writing():
            session.check_unmoved()
            change = await session.lane.run(_exchange, session, wanted)
            version = session.version
    session.moved("optimizer_changed", change.report())
    return change, version


def _exchange(session: Session, wanted: OptimizerExchange) -> Exchange:
    change = exchange(session.plan, wanted)
    old = change.moving(session.stored.read_state())
    standing = replace(session.standing, plan=change.after)
    buffers = change.after.buffers
    _replace(session, lambda working: exchange_(working, change, old), buffers, buffers, standing)
    session.standing = standing
    return change


async def change(session: Session, wanted: SessionChange) -> None:
    """Change name, policy or hyperparameters for all later steps; all or nothing.

    Raises: SessionNotFound, InvalidField, InvalidHyperparameter, DiskFull, JournalFailed.
    """
    # Not while a step is taken: a new schedule begins behind it.
    await session.catch_up()
    async with session.writing():
        await session.lane.run(_change, session, wanted)
    session.event("changed", wanted.model_dump(mode="json", exclude_unset=True))


def _change(session: Session, wanted: SessionChange) -> None:
    state, version = session.stored, session.version
    plan = changed(session.plan, wanted, version.step)
    rehearse(plan)
    name = session.standing.name if wanted.name is None else wanted.name
    standing = replace(session.standing, plan=plan, name=name)
    record = Record(CHANGED, {"version": version}, standing=standing.to_json()) if state.records else None
    state.commit(state.begin({}), version, {}, record)
    session.standing = standing


def changed(plan: Plan, wanted: SessionChange, step: int) -> Plan:
    """A plan with other settings.

    Args:
      step: where a new schedule begins.

    Raises: InvalidField, InvalidHyperparameter.
    """
    own = own_values([(group.name, group.hyperparameters) for group in wanted.groups])
    settings = plan.settings.changed(wanted.optimizer, own)
    return replace(plan, settings=settings, policy=plan.policy.changed(wanted, step))
