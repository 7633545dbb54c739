"""A session: the one place where weights, optimizer and history meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from optimd_service.errors import SessionNotFound
from optimd_service.history import History
from optimd_service.optim.update import Here, Workplace, new_scratch
from optimd_service.session.arithmetic import Lane
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.description import SessionChange
from optimd_service.session.exported import StateBody, export_state, import_state_
from optimd_service.session.preconditions import Match, Precondition
from optimd_service.session.push import Push
from optimd_service.session.settings import Settings, own_values
from optimd_service.session.turns import Turns
from optimd_service.store.contract import Snapshot, StoredState, Working
from optimd_service.types import EventRow, Layout, NonfinitePolicy, Receipt, StepRow, Version, utc_now
from optimd_service.wire.encode import Encoder
from optimd_service.wire.landing import HeaderReader
from optimd_service.wire.received import Received

# The one arithmetic on the event loop: up to here an update takes some 50 µs, and handing it to a thread and back 150
# to 300 µs, in which no other request is served any sooner.
TINY = 2**14
FEW_GROUPS = 4
FEW_TENSORS = 256


@dataclass(frozen=True, slots=True)
class Stepped:
    """A receipt, and the weights that the session holds now; whoever is given them releases them."""

    receipt: Receipt
    snapshot: Snapshot


class Session:
    """One model's weights, optimizer state and hyperparameters, and the order in which they change.

    Coroutines here may wait for other calls to this session, never for another session.

    Attributes:
      id: sorts by time of creation.
      name, nonfinite, settings: as they stand now; the blueprint keeps what was said at creation.
      skipped: pushes that the non-finite policy skipped.
      tiny: small enough in every respect to be stepped on the event loop.
      deleted: nothing is done for it any more.
      lane: the threads that compute for this session.
      headers, encoder: read and write bodies that hold this session's tensors.
    """

    def __init__(self, session_id: str, blueprint: Blueprint, state: StoredState, lane: Lane, history: History) -> None:
        self.id = session_id
        self.created_at = utc_now()
        self.blueprint = blueprint
        self.name: str = blueprint.description.name
        self.nonfinite: NonfinitePolicy = blueprint.description.nonfinite
        self.settings: Settings = blueprint.settings
        self.skipped = 0
        self.lane = lane
        self.headers = HeaderReader(blueprint.layout)
        self.encoder = Encoder(blueprint.layout)
        self._state = state
        self._turns = Turns(version=lambda: state.version, known=lambda key: state.recall(key) is not None)
        self._moved = asyncio.Event()
        self._may_wait = True
        self.deleted = False
        # With a scratch of its own size, a tiny session cuts nothing to size at every step.
        layout = blueprint.layout
        self.tiny = layout.numel <= TINY and len(layout.groups) <= FEW_GROUPS and len(layout.tensors) <= FEW_TENSORS
        self._place: Workplace = Here(new_scratch(layout.numel, layout.dtype)) if self.tiny else lane
        self._history = history

    @property
    def layout(self) -> Layout:
        return self.blueprint.layout

    @property
    def version(self) -> Version:
        return self._state.version

    @property
    def held_bytes(self) -> int:
        """Weights, gradient buffer and state."""
        return self._state.held_bytes

    @property
    def grads(self) -> torch.Tensor:
        """Shape [numel]; where a body lands whose sender holds the turn."""
        return self._state.grads

    def pushing(self, precondition: Precondition) -> AbstractAsyncContextManager[None]:
        """Hold the session for one push, whose body arrives and is applied inside.

        Raises: PreconditionRequired, StepInFlight, StaleStep.
        """
        return self._turns.push(precondition)

    async def apply(self, received: Received, precondition: Precondition) -> Stepped:
        """Apply a push; inside ``pushing``. Completely or not at all.

        Raises: SessionNotFound when the session was deleted meanwhile, and what ``Push.apply`` raises.
        """
        async with self._turns.writing:
            self._check_alive()
            push = Push(self.id, received, precondition.key, self._state, self.settings, self.nonfinite)
            here = self.tiny and received.quick
            stepped = self._apply(push) if here else await self.lane.run(self._apply, push)
        self._wake()
        return stepped

    def _apply(self, push: Push) -> Stepped:
        receipt = push.apply(self._place)
        if not receipt.duplicate:
            self._record(push, receipt)
        return Stepped(receipt, self._state.snapshot())

    def _record(self, push: Push, receipt: Receipt) -> None:
        if receipt.outcome == "applied":
            facts = push.facts
            self._history.step(StepRow(receipt, utc_now(), facts.num_examples, facts.worker, facts.hyperparameters))
        else:
            self.skipped += 1
            self._event(receipt.outcome, {"loss": receipt.loss, "worker": push.facts.worker})

    @asynccontextmanager
    async def replacing(self, match: Match | None) -> AsyncIterator[None]:
        """Hold the session while weights or state are sent to replace its own. Raises: StaleStep, SessionNotFound."""
        async with self._turns.taking:
            self._check_alive()
            if match:
                match.check(self.version)
            yield

    async def put_params(self, received: Received) -> Version:
        """Replace the weights; inside ``replacing``. The optimizer's state stays.

        Raises: InvalidField, TensorMismatch, ShapeMismatch, NonfiniteParams.
        """

        def put_() -> None:
            # The gradient buffer is ours for this turn: the weights are judged there before they replace the old.
            received.land_(self.grads, self.layout)
            refuse_nonfinite(self.grads, self.layout)
            self._replace(lambda working: working.params.copy_(self.grads))

        return await self._replacement(put_, "params_put")

    async def put_state(self, received: StateBody) -> Version:
        """Replace the optimizer's state; inside ``replacing``. The weights stay.

        Raises: InvalidField, NonfiniteParams.
        """
        buffers = frozenset(buffer for _, buffer in received.buffers)
        return await self._replacement(
            lambda: self._replace(import_state_(received, self.settings), buffers), "state_put"
        )

    def _replace(self, write_: Callable[[Working], Any], buffers: frozenset[str] = frozenset()) -> None:
        working = self._state.begin(self.settings.buffers | buffers)
        write_(working)
        version = self.version
        self._state.commit(working, Version(version.step, version.generation + 1), {})

    async def _replacement(self, put_: Callable[[], None], kind: str) -> Version:
        async with self._turns.writing:
            self._check_alive()
            await self.lane.run(put_)
            version = self.version
        self._event(kind, {"etag": version.etag})
        self._wake()
        return version

    async def pull(self) -> Snapshot:
        """Hold the weights of exactly one version; whoever is given them releases them."""
        async with self._turns.writing:
            self._check_alive()
            return self._state.snapshot()

    async def state(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        """A copy of the optimizer's state: metadata, and `<tensor>.<buffer>` → tensor."""
        async with self._turns.writing:
            self._check_alive()
            copied = await self.lane.run(export_state, self._state.read_state(), self.layout, self.settings)
            return {**copied[0], "etag": self.version.etag}, copied[1]

    async def moved_from(self, match: Match, timeout_s: float) -> bool:
        """Wait until the session stands elsewhere than ``match`` says, or is deleted; False when neither came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while match.accepts(self.version) and not self.deleted and self._may_wait:
                    await self._moved.wait()
        return self.deleted or not match.accepts(self.version)

    def stop_waiting(self) -> None:
        """Let those go who wait for a step: the server ends, and would wait for them."""
        self._may_wait = False
        self._wake()

    def change(self, change: SessionChange) -> None:
        """Change name, policy or hyperparameters for all later steps; all or nothing.

        Raises: SessionNotFound, InvalidField, InvalidHyperparameter.
        """
        self._check_alive()
        own = own_values([(group.name, group.hyperparameters) for group in change.groups])
        self.settings = self.settings.changed(change.optimizer, own)
        self.name = self.name if change.name is None else change.name
        self.nonfinite = change.nonfinite or self.nonfinite
        self._event("changed", change.model_dump(exclude_unset=True))

    async def delete(self) -> None:
        """Wait for the push that is being applied, and take no other."""
        async with self._turns.writing:
            self.deleted = True
        self._wake()

    def _check_alive(self) -> None:
        if self.deleted:
            raise SessionNotFound(f"The session {self.id} has been deleted.")

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _event(self, kind: str, detail: dict[str, Any]) -> None:
        self._history.event(EventRow(self.id, kind, self.version.step, detail))
