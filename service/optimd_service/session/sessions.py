"""All sessions of this server: created here, found here, deleted here."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import torch

from optimd_service.errors import (
    InvalidField,
    Problem,
    RedisUnavailable,
    SessionLost,
    SessionNotFound,
    StateDamaged,
)
from optimd_service.history import History
from optimd_service.session import changing, time_travel
from optimd_service.session.arithmetic import Arithmetic, Lane
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.branching import ForkDescription, copy_, elsewhere, enter_, forked, sizes_of
from optimd_service.session.creation import Fill, fill, initialise
from optimd_service.session.description import OptimizerExchange, SessionChange
from optimd_service.session.exchange import Exchange
from optimd_service.session.forking import Beginnings, beginnings
from optimd_service.session.moment import Moment
from optimd_service.session.preconditions import Match
from optimd_service.session.recovery import Recovered, recover
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.representation import represent
from optimd_service.session.session import Session
from optimd_service.session.shared import BACKEND, publish, require_shared
from optimd_service.session.shared import find as find_shared
from optimd_service.session.sharing import Sharing, take_in
from optimd_service.session.standing import Standing
from optimd_service.session.telling import Telling
from optimd_service.session.upkeep import RolledBack, Upkeep
from optimd_service.session.what_if import WhatIf
from optimd_service.store.contract import Store, StoredState
from optimd_service.store.durable import DurableState
from optimd_service.store.durable_store import DurableStore
from optimd_service.store.redis.store import RedisStore
from optimd_service.types import Buffers, SessionRow, Version
from optimd_service.wire.received import Received

log = logging.getLogger("optimd")


def new_session_id() -> str:
    """20 hex digits: milliseconds since 1970, so that ids sort by time of creation, and 8 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


class Sessions:
    """The live sessions, by id, and the history of all."""

    def __init__(
        self, store: DurableStore, arithmetic: Arithmetic, history: History, redis: RedisStore | None = None
    ) -> None:
        self.arithmetic = arithmetic
        self.history = history
        self._store = store
        self._redis = redis
        self._opening: dict[str, asyncio.Task[Session | None]] = {}
        self._ending = False
        self._live: dict[str, Session] = {}
        self._recovering: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, Problem] = {}

    def __len__(self) -> int:
        return len(self._live)

    async def create(
        self, blueprint: Blueprint, arrive: Callable[[torch.Tensor], Awaitable[Fill]] | None = None
    ) -> Session:
        """Make room for a session, give it its first weights, and record it.

        Args:
          arrive: receives the weights that come with the body; given a flat buffer, shape [numel], it may land them
            there at once. Without it the tensors' initialisers decide.

        Raises: InsufficientMemory, NonfiniteParams, and what ``arrive`` raises; no room is taken then.
        """
        session_id, standing = new_session_id(), Standing.first(blueprint)
        lane, store = self._lane_of(standing), self._store_of(standing)
        # In threads: a session may have a hundred thousand tensors to lay out and to describe.
        async with _given_up_unless_begun(session_id, store, lane):
            state = await lane.run(lambda: _room(store, session_id, standing, blueprint.plan.buffers))
            await self._first_weights(lane, blueprint, state, arrive)
            return await self._begin(session_id, standing, state, lane)

    async def fork(self, source: Session, wanted: ForkDescription) -> Session:
        """Make a session that begins where another stands, or stood, perhaps with other settings.

        Raises: InvalidField, InvalidHyperparameter, InsufficientMemory, StepNotRetained, SessionNotFound, StateDamaged,
        JournalCorrupt, CheckpointCorrupt, DiskFull, JournalFailed; there is no new session then.
        """
        session_id = new_session_id()
        there = await source.lane.run(elsewhere, source.standing, wanted)
        lane, store = self._lane_of(there), self._store_of(there)

        def room(sizes: Buffers) -> StoredState:
            store.drop(session_id)
            return _room(store, session_id, there, sizes)

        async with _given_up_unless_begun(session_id, store, lane):
            async with beginnings(source, wanted.moment, self.arithmetic.disk) as ways:
                alike = store is self._store and source.policy.device == there.plan.policy.device
                if alike or not ways.computes:
                    state, stood = await ways.fill(room)
                else:
                    state, stood = await self._filled_elsewhere(ways, source, room)

            def begin() -> Standing:
                standing, taken = forked(stood, wanted, source.id, state.version)
                enter_(state, taken, Version(state.version.step, 0))
                return standing

            fork = await self._begin(session_id, await lane.run(begin), state, lane)
        source.event("forked", {"session": session_id, "etag": (fork.standing.origin or {})["etag"]})
        return fork

    async def what_if(self, session: Session, received: Received) -> dict[str, Any]:
        """What one gradient would do under several settings; nothing is done.

        Raises: SessionNotFound, StateDamaged, and what ``WhatIf`` does.
        """
        base, trial = new_session_id(), new_session_id()
        await session.catch_up()
        try:
            async with session.writing():
                trying = WhatIf(session, self._store, base, trial)
                await session.lane.run(trying.copy)
            return await session.lane.run(trying.judge, received)
        finally:
            for beside in (base, trial):
                await session.lane.run(self._store.drop, beside)

    async def _filled_elsewhere(
        self, ways: Beginnings, source: Session, make: Callable[[Buffers], StoredState]
    ) -> tuple[StoredState, Standing]:
        """Fill a fork from memory where the source's steps are taken again, since they would not be the same there."""
        beside = new_session_id()

        def room(sizes: Buffers) -> StoredState:
            self._store.drop(beside)
            plan = source.plan
            return self._store.create(beside, plan.layout, sizes, plan.grads, plan.policy.device)

        try:
            first, stood = await ways.fill(room)

            def move() -> StoredState:
                working = first.read_state()
                state = make(sizes_of(working))
                copy_(state, working, first.version)
                return state

            return await ways.lane.run(move), stood
        finally:
            await ways.lane.run(self._store.drop, beside)

    async def _begin(self, session_id: str, standing: Standing, state: StoredState, lane: Lane) -> Session:
        """Let a session that has its first weights and state be found, also behind a crash."""

        def begin() -> tuple[Session, SessionRow]:
            rehearse(standing.plan)
            upkeep = self._upkeep(session_id, standing, state, lane)
            if upkeep is not None:
                upkeep.save(standing).run()
            sharing = publish(state, standing, self.history)
            session = Session(session_id, standing, state, lane, self.history, upkeep, sharing)
            return session, _row(session)

        session, row = await lane.run(begin)
        self._live[session_id] = session
        self.history.session_created(row)
        session.event("created", {} if standing.origin is None else {"origin": standing.origin})
        return session

    def _lane_of(self, standing: Standing) -> Lane:
        description = standing.blueprint.description
        return self.arithmetic.lane(standing.blueprint.layout.numel, waits=description.durability == "step")

    def _store_of(self, standing: Standing) -> Store:
        """Where a new session is to live. Raises: InvalidField."""
        if standing.blueprint.description.storage.backend != BACKEND:
            return self._store
        if self._redis is None:
            raise InvalidField(
                "This server has no Redis: set OPTIMD_REDIS_URL, or create the session with storage.backend device.",
                field="storage.backend",
            )
        require_shared(standing.plan)
        return self._redis

    def _upkeep(self, session_id: str, standing: Standing, state: StoredState, lane: Lane) -> Upkeep | None:
        if not isinstance(state, DurableState):
            return None
        description = standing.blueprint.description
        wanted = description.checkpoint.of(description.durability)
        return Upkeep(session_id, state, lane, self.arithmetic.disk, wanted, Telling(self.history))

    async def recover(self) -> None:
        """Begin to take in the sessions that are kept on disk; each can be asked for at once.

        Call it once, before the history is started: it must not take them for lost.
        """
        for session_id in await self.arithmetic.disk.run(self._store.ids):
            self._recovering[session_id] = asyncio.create_task(self._recover(session_id))

    @property
    def kept(self) -> frozenset[str]:
        """Sessions that outlived an earlier run of this server, and are not in memory yet."""
        return frozenset(self._recovering)

    async def _recover(self, session_id: str) -> None:
        try:
            found = await self.arithmetic.disk.run(recover, session_id, self._store, self.arithmetic)
            if found is None:  # its creation was never acknowledged
                return
            upkeep = self._upkeep(session_id, found.standing, found.state, found.lane)
            if upkeep is not None and not found.state.journaled:
                await self.arithmetic.disk.run(lambda: upkeep.save(found.standing).run())
            session = Session(session_id, found.standing, found.state, found.lane, self.history, upkeep)
            await self.arithmetic.disk.run(self._record_again, session, found)  # before any step that follows
        except Problem as problem:
            log.error("session %s cannot be opened: %s", session_id, problem.detail)  # noqa: TRY400  not the code's fault
            self._refused[session_id] = problem
            return
        except Exception:
            log.exception("session %s cannot be opened", session_id)
            self._refused[session_id] = StateDamaged("This session cannot be opened; the server's log says why.")
            return
        self._live[session_id] = session

    def _record_again(self, session: Session, found: Recovered) -> None:
        """Tell the history what it may have missed, and what it recorded that did not last."""
        self.history.session_created(_row(session))
        for step, at in found.rollbacks():
            self.history.supersede(session.id, step, at)
        self.history.supersede(session.id, session.version.step)
        for row in found.rows():
            self.history.step(row)

    async def close(self) -> None:
        """Keep what is not kept yet. Nothing is asked of any session any more."""
        await asyncio.gather(*self._recovering.values(), return_exceptions=True)
        await asyncio.gather(*(session.close() for session in self._live.values()))
        await self.arithmetic.disk.run(self._store.close)
        if self._redis is not None:
            self._redis.close()

    async def _first_weights(
        self,
        lane: Lane,
        blueprint: Blueprint,
        state: StoredState,
        arrive: Callable[[torch.Tensor], Awaitable[Fill]] | None,
    ) -> None:
        # Straight into the weights: if they are refused, there is no session.
        if arrive is None:
            await lane.run(initialise, blueprint, state)
        else:
            await lane.run(fill, state, await arrive(state.read_state().params))

    def find(self, session_id: str) -> Session | None:
        """The live session of this id."""
        session = self._live.get(session_id)
        return None if session is None or session.deleted else session

    async def get(self, session_id: str) -> Session:
        """The live session of this id. Raises: SessionNotFound, SessionLost."""
        session = self.find(session_id)
        if session is None or session.sharing is not None:
            session = await self.awaited(session_id)
        if session is None:
            raise await self._absent(session_id)
        return session

    async def _absent(self, session_id: str) -> Problem:
        """Why a session is not live."""
        going = self._live.get(session_id)
        row = await self.history.session(session_id)
        # One that is being deleted is gone already, although its rows may not be.
        if row is None or (going is not None and going.deleted and going.sharing is None):
            return self.unknown(session_id)
        if row.spec["storage"]["backend"] != BACKEND:
            return SessionLost(
                f"The server that held the session {session_id} in memory has ended. Its history remains at "
                f"/v1/sessions/{session_id}/steps; create a new session from your last pull to go on."
            )
        if self._redis is None:
            return RedisUnavailable("This session lives in Redis, and this server has none: set OPTIMD_REDIS_URL.")
        return SessionLost(
            "Redis has lost this session. Bring back what Redis has kept on disk, or create a new session from your "
            "last pull."
        )

    async def awaited(self, session_id: str) -> Session | None:
        """The session of this id, once it is in memory; None if there is none live.

        Raises: what it cannot be opened for.
        """
        if session_id in self._recovering:
            await asyncio.shield(self._recovering[session_id])
        if session_id in self._refused:
            raise self._refused[session_id]
        session = self.find(session_id)
        if session is None:
            return await self._opened(session_id)
        try:
            await session.catch_up()
        except SessionNotFound:
            if session.sharing is not None:
                await self._forget(session)  # another server has deleted it
            raise
        return session

    async def _opened(self, session_id: str) -> Session | None:
        """A session that another server, or an earlier run of this one, has put in Redis; None if there is none."""
        if self._redis is None or session_id in self._live:
            return None
        if session_id not in self._opening:
            self._opening[session_id] = asyncio.create_task(self._open(session_id, self._redis))
            self._opening[session_id].add_done_callback(lambda _: self._opening.pop(session_id))
        return await asyncio.shield(self._opening[session_id])

    async def _open(self, session_id: str, redis: RedisStore) -> Session | None:
        found = await self.arithmetic.disk.run(find_shared, session_id, redis, self.arithmetic)
        if found is None:
            return None
        sharing = Sharing(found.state, self.history)

        def take_in_() -> Session:
            session = Session(session_id, found.standing, found.state, found.lane, self.history, None, sharing)
            self.history.session_created(_row(session))
            session.standing = take_in(found.caught, found.standing, self.history)
            return session

        session = self._live[session_id] = await self.arithmetic.disk.run(take_in_)
        if self._ending:
            session.stop_waiting()
        return session

    async def _forget(self, session: Session) -> None:
        """Give up what is here of a session in Redis."""
        await session.delete()
        self._live.pop(session.id, None)
        if self._redis is not None:
            self._redis.forget(session.id)

    async def redis_warnings(self) -> list[str] | None:
        """What Redis may lose of what it has acknowledged; None without Redis.

        Raises: RedisUnavailable; RedisNotDurable, where none is allowed that may lose anything.
        """
        return None if self._redis is None else await self.arithmetic.disk.run(self._redis.readiness.require)

    async def warn_of_redis(self) -> None:
        """Tell whoever reads the log."""
        try:
            for warning in await self.redis_warnings() or ():
                log.warning("%s", warning)
        except Problem as problem:
            log.warning("%s", problem.detail)

    async def known(self, session_id: str) -> None:
        """Make sure that there is, or was, such a session, of which history knows all. Raises: SessionNotFound."""
        if session_id in self._recovering:
            await asyncio.shield(self._recovering[session_id])
        session = self._live.get(session_id)
        if session is not None and not session.deleted:
            return
        # One that is being deleted is gone already, although its rows may not be.
        if session is not None or await self.history.session(session_id) is None:
            raise self.unknown(session_id)

    def unknown(self, session_id: str) -> SessionNotFound:
        """The error that says so."""
        return SessionNotFound(f"There is no session {session_id[:40]!r}; GET /v1/sessions lists them.")

    async def change(self, session: Session, change: SessionChange) -> None:
        """Change a session and record it. Raises: SessionNotFound, InvalidField, InvalidHyperparameter."""
        await changing.change(session, change)
        await self._describe(session)

    async def exchange(
        self, session: Session, wanted: OptimizerExchange, match: Match | None
    ) -> tuple[Exchange, Version]:
        """Give a session another optimizer and record it; what ``give_optimizer`` raises, and what it returns."""
        changed = await changing.give_optimizer(session, wanted, match)
        await self._describe(session)
        return changed

    async def roll_back(self, session: Session, moment: Moment, match: Match | None) -> RolledBack:
        """Return to where a session stood, and record it; raises and returns what ``time_travel.roll_back`` does."""
        returned = await time_travel.roll_back(session, moment, match)
        await self._describe(session)
        return returned

    async def _describe(self, session: Session) -> None:
        row = await session.lane.run(_row, session)
        if not session.deleted:
            self.history.session_changed(row)

    def stop_waiting(self) -> None:
        """Let those go who wait for a step of any session, and nobody wait from now on."""
        self._ending = True
        for session in self._live.values():
            session.stop_waiting()

    async def delete(self, session_id: str) -> None:
        """Remove a session, live or lost, with its history. Raises: SessionNotFound, HistoryUnavailable."""
        session = self.find(session_id)
        if not await self._delete_shared(session_id, session):
            await self.known(session_id)
        if session_id in self._recovering:
            await asyncio.shield(self._recovering.pop(session_id))
            session = self.find(session_id)
        self._refused.pop(session_id, None)
        if session is not None and session.sharing is not None:
            await self._forget(session)
        elif session is not None:
            await session.delete()
        await self.arithmetic.disk.run(self._store.drop, session_id)
        try:
            await self.history.delete_session(session_id)
        finally:
            self._live.pop(session_id, None)

    async def _delete_shared(self, session_id: str, session: Session | None) -> bool:
        """Delete a session from Redis, before anything is forgotten here; False if it is not there."""
        if self._redis is None or (session is not None and session.sharing is None):
            return False
        return await self.arithmetic.disk.run(self._redis.delete, session_id)


def _room(store: Store, session_id: str, standing: Standing, buffers: Buffers) -> StoredState:
    """Make room for a session."""
    plan, durability = standing.plan, standing.blueprint.description.durability
    return store.create(session_id, plan.layout, buffers, plan.grads, plan.policy.device, durability)


@asynccontextmanager
async def _given_up_unless_begun(session_id: str, store: Store, lane: Lane) -> AsyncIterator[None]:
    """Leave nothing of a session whose making fails inside."""
    try:
        yield
    except BaseException:
        with suppress(RedisUnavailable):  # nobody knows the session, and this server has forgotten it
            await lane.run(store.drop, session_id)
        raise


def _row(session: Session) -> SessionRow:
    spec = represent(session)
    standing = session.standing
    return SessionRow(session.id, standing.name, session.settings.optimizer.name, spec, standing.created_at)
