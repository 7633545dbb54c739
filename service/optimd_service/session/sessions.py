"""All sessions of this server: created here, found here, deleted here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

import torch

from optimd_service.errors import SessionLost, SessionNotFound
from optimd_service.history import History
from optimd_service.session.arithmetic import Arithmetic, Lane
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.creation import Fill, fill, initialise
from optimd_service.session.description import OptimizerExchange, SessionChange
from optimd_service.session.exchange import Exchange
from optimd_service.session.preconditions import Match
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.representation import represent
from optimd_service.session.session import Session
from optimd_service.store.contract import Store, StoredState
from optimd_service.types import EventRow, SessionRow, Version


def new_session_id() -> str:
    """20 hex digits: milliseconds since 1970, so that ids sort by time of creation, and 8 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


class Sessions:
    """The live sessions, by id, and the history of all."""

    def __init__(self, store: Store, arithmetic: Arithmetic, history: History) -> None:
        self.arithmetic = arithmetic
        self.history = history
        self._store = store
        self._live: dict[str, Session] = {}

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
        session_id = new_session_id()
        lane = self.arithmetic.lane(blueprint.layout.numel)
        plan = blueprint.plan

        def make_room() -> StoredState:
            return self._store.create(session_id, plan.layout, plan.buffers, plan.grads, plan.policy.device)

        def begin(state: StoredState) -> tuple[Session, SessionRow]:
            rehearse(plan)
            session = Session(session_id, blueprint, state, lane, self.history)
            return session, _row(session)

        # In threads: a session may have a hundred thousand tensors to lay out and to describe.
        try:
            state = await lane.run(make_room)
            await self._first_weights(lane, blueprint, state, arrive)
            session, row = await lane.run(begin, state)
        except BaseException:
            self._store.drop(session_id)
            raise
        self._live[session_id] = session
        self.history.session_created(row)
        self.history.event(EventRow(session_id, "created", 0, {}))
        return session

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
        if session is None:
            await self.known(session_id)
            raise SessionLost(
                f"The server that held the session {session_id} in memory has ended. Its history remains at "
                f"/v1/sessions/{session_id}/steps; create a new session from your last pull to go on."
            )
        return session

    async def known(self, session_id: str) -> None:
        """Make sure that there is, or was, such a session. Raises: SessionNotFound."""
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
        await session.change(change)
        await self._describe(session)

    async def exchange(
        self, session: Session, wanted: OptimizerExchange, match: Match | None
    ) -> tuple[Exchange, Version]:
        """Give a session another optimizer and record it; what ``Session.exchange`` raises, and what it returns."""
        changed = await session.exchange(wanted, match)
        await self._describe(session)
        return changed

    async def _describe(self, session: Session) -> None:
        row = await session.lane.run(_row, session)
        if not session.deleted:
            self.history.session_changed(row)

    def stop_waiting(self) -> None:
        """Let those go who wait for a step of any session."""
        for session in self._live.values():
            session.stop_waiting()

    async def delete(self, session_id: str) -> None:
        """Remove a session, live or lost, with its history. Raises: SessionNotFound, HistoryUnavailable."""
        await self.known(session_id)
        session = self.find(session_id)
        if session is not None:
            await session.delete()
            self._store.drop(session_id)
        try:
            await self.history.delete_session(session_id)
        finally:
            self._live.pop(session_id, None)


def _row(session: Session) -> SessionRow:
    spec = represent(session)
    return SessionRow(session.id, session.name, session.settings.optimizer.name, spec, session.created_at)
