"""A session: the one place where weights, optimizer and history meet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import torch

from optimd_service.errors import SessionNotFound
from optimd_service.history import History
from optimd_service.optim import on_device
from optimd_service.optim.update import Here, Workplace
from optimd_service.session.arithmetic import Lane
from optimd_service.session.averages import Averaged, Copied, averaged
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.contribution import Part
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.description import OptimizerExchange, SessionChange
from optimd_service.session.exchange import Exchange, exchange, exchange_
from optimd_service.session.exported import export_state
from optimd_service.session.following import Following
from optimd_service.session.gradients import scale_of
from optimd_service.session.held import Held, Moving
from optimd_service.session.imported import StateBody, import_state_
from optimd_service.session.incoming import Incoming
from optimd_service.session.part import Arriving, PartBody
from optimd_service.session.plan import HELD, Plan
from optimd_service.session.policy import Policy
from optimd_service.session.preconditions import Match, Precondition
from optimd_service.session.push import Push
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.settings import Settings, own_values
from optimd_service.session.stepped import Stepped
from optimd_service.session.turns import Turns
from optimd_service.session.waiters import Waiters
from optimd_service.session.writing import writing
from optimd_service.store.contract import Snapshot, StoredState, Working
from optimd_service.types import Buffers, EventRow, Layout, Receipt, StepRow, Version, utc_now
from optimd_service.wire.encode import Encoder
from optimd_service.wire.landing import HeaderReader, PartReader
from optimd_service.wire.received import Received


class Session:
    """One model's weights, optimizer state and hyperparameters, and the order in which they change.

    Coroutines here may wait for other calls to this session, never for another session.

    Attributes:
      id: sorts by time of creation.
      name, plan: as they stand now; the blueprint keeps what was said at creation.
      skipped: pushes that the non-finite policy skipped.
      deleted: nothing is done for it any more.
      lane: the threads that compute for this session.
      held: what a client holds that is sent differences, if the session remembers it.
      headers, encoder: read and write bodies that hold this session's tensors.
    """

    def __init__(self, session_id: str, blueprint: Blueprint, state: StoredState, lane: Lane, history: History) -> None:
        self.id = session_id
        self.created_at = utc_now()
        self.blueprint = blueprint
        self.name: str = blueprint.description.name
        self.plan: Plan = blueprint.plan
        self.skipped = 0
        self.lane = lane
        self.headers = HeaderReader(*blueprint.plan.pushes, by_rows=True)
        self.part_headers = PartReader(blueprint.plan.pushes[1])
        self.weight_headers = HeaderReader(blueprint.layout)
        self.encoder = Encoder(blueprint.layout)
        self.held = Held(state.read_state().state[HELD]) if self.plan.policy.wire.difference else None
        self._state = state
        self._turns = Turns(version=lambda: state.version, known=lambda key: state.recall(key) is not None)
        self._waiters = Waiters()
        self.deleted = False
        self._history = history

    @property
    def tiny(self) -> bool:
        """Small enough in every respect to be stepped on the event loop."""
        return self.plan.tiny

    @property
    def layout(self) -> Layout:
        return self.blueprint.layout

    @property
    def version(self) -> Version:
        return self._state.version

    @property
    def loss_scale_now(self) -> float | None:
        """What the next loss is to be multiplied by; None without loss scaling."""
        return scale_of(self.policy, self._state.numbers) if self.policy.loss_scale else None

    @property
    def held_bytes(self) -> int:
        """Weights, gradient buffer and state."""
        return self._state.held_bytes

    @property
    def params_dtype(self) -> torch.dtype:
        """Of weights in replies that are not asked for a dtype."""
        return self.policy.wire.params_dtype or self.layout.dtype

    @property
    def settings(self) -> Settings:
        return self.plan.settings

    @property
    def policy(self) -> Policy:
        return self.plan.policy

    @property
    def grads(self) -> torch.Tensor:
        """Shape [pushable]; where a body lands whose sender holds the turn."""
        return self._state.grads

    @property
    def landing_place(self) -> torch.Tensor | None:
        """Shape [numel]; where weights land whose sender holds the turn, if there is such a place."""
        fits = (self.grads.numel(), self.grads.dtype) == (self.layout.numel, self.layout.dtype)
        return self.grads if fits else None

    def pushing(self, precondition: Precondition, *, whole: bool = True) -> AbstractAsyncContextManager[None]:
        """Hold the session for one push, whose body arrives and is applied inside.

        Args:
          whole: all of it is in that body.

        Raises: PreconditionRequired, StepInFlight, StaleStep.
        """
        if self.policy.may_stand_still:
            precondition.require_key(self.version)
        return self._turns.push(precondition, whole=whole)

    @asynccontextmanager
    async def assembling(self, part: Part, precondition: Precondition) -> AsyncIterator[Arriving]:
        """Hold the session for one part of a push, which arrives and is kept inside, or applied if it completes it.

        Raises: StaleStep, SessionNotFound; of one that completes it, what ``pushing`` raises.
        """
        turn = self.pushing(precondition, whole=False) if part.completes else self._taking(precondition.match)
        async with turn:
            yield Arriving(self._turns.contribution(part.contribution), part.completes, self.layout)

    async def keep(self, part: PartBody) -> Stepped:
        """Keep a part of a push until one comes that completes it; inside ``assembling``.

        Raises: SessionNotFound, and what ``Push.keep`` raises.
        """
        async with self._turns.writing:
            self._check_alive()
            push = Push(self.id, part, None, self._state, self.plan)
            receipt = push.keep() if part.quick else await self.lane.run(push.keep)
            return Stepped(receipt, self._state.snapshot())

    def incoming(self) -> Incoming | None:
        """What receives the gradients of a push; those of a tiny session are judged as fast when they are there."""
        if self.tiny or self.policy.on_device:
            return None
        return Incoming(self.grads, self.layout.trained.numel, widens=self.policy.writes_gradients)

    async def apply(
        self,
        received: Received,
        precondition: Precondition,
        incoming: Incoming | None = None,
        following: Following | None = None,
    ) -> Stepped:
        """Apply a push; inside ``pushing``. Completely or not at all.

        Args:
          incoming: what has received its gradients.
          following: is told how the new weights come, if it reads them while they are written.

        Raises: SessionNotFound when the session was deleted meanwhile, and what ``Push.apply`` raises.
        """
        async with self._turns.writing:
            self._check_alive()
            push = Push(self.id, received, precondition.key, self._state, self.plan, incoming, following)
            here = self.tiny and received.quick
            stepped = self._apply(push) if here else await self.lane.run(self._apply, push)
        self._waiters.wake()
        return stepped

    def _apply(self, push: Push) -> Stepped:
        following = push.following
        try:
            stepped = self._step(push)
        except BaseException:
            if following is not None:
                following.fail()
            raise
        if following is not None:
            following.end(stepped)
        return stepped

    def _step(self, push: Push) -> Stepped:
        receipt = push.apply(self._place)
        self._turns.forget()  # accumulated or skipped, it leaves the version as it is
        if not receipt.duplicate:
            self._record(push, receipt)
        return Stepped(receipt, self._state.snapshot())

    @property
    def _place(self) -> Workplace:
        if self.policy.on_device:
            return Here(on_device.BLOCK)
        return Here() if self.tiny else self.lane

    def _record(self, push: Push, receipt: Receipt) -> None:
        if receipt.outcome == "applied":
            facts = push.facts
            self._history.step(StepRow(receipt, utc_now(), facts.num_examples, facts.worker, facts.hyperparameters))
        elif receipt.outcome == "skipped_nonfinite":
            self.skipped += 1
            self._event(receipt.outcome, {"loss": receipt.loss, "worker": push.facts.worker})

    @asynccontextmanager
    async def replacing(self, match: Match | None) -> AsyncIterator[None]:
        """Hold the session while weights or state are sent to replace its own. Raises: StaleStep, SessionNotFound."""
        async with self._taking(match):
            self._turns.forget()
            yield

    @asynccontextmanager
    async def _taking(self, match: Match | None) -> AsyncIterator[None]:
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
            place = self.landing_place
            new = torch.empty(self.layout.numel, dtype=self.layout.dtype) if place is None else place
            received.land_(new, self.layout)
            refuse_nonfinite(new, self.layout)
            self._replace(lambda working: working.params.copy_(new), {})
            if self.held is not None:
                self.held.forget()

        return await self._replacement(put_, "params_put")

    async def put_state(self, received: StateBody) -> Version:
        """Replace the optimizer's state; inside ``replacing``. The weights stay.

        Raises: InvalidField, NonfiniteParams.
        """
        return await self._replacement(
            lambda: self._replace(import_state_(received), {**self.plan.buffers, **received.sizes}),
            "state_put",
        )

    def _replace(self, write_: Callable[[Working], Any], buffers: Buffers) -> None:
        """Publish what ``write_`` writes as the next generation."""
        with writing(self._state, buffers, self.id) as working:
            write_(working)
            step, generation = self.version
            self._state.commit(working, Version(step, generation + 1), {})

    async def _replacement(self, put_: Callable[[], None], kind: str) -> Version:
        async with self._turns.writing:
            self._check_alive()
            await self.lane.run(put_)
            version = self.version
        self._event(kind, {"etag": version.etag})
        self._waiters.wake()
        return version

    def move(self, shown: str | None) -> Moving | None:
        """Begin a reply to a client that shows what it holds, as ``Held`` has it; None to one that shows nothing."""
        return None if self.held is None or shown is None else self.held.move(shown)

    async def pull(self) -> Snapshot:
        """Hold the weights of exactly one version; whoever is given them releases them."""
        async with self._turns.writing:
            self._check_alive()
            return self._state.snapshot()

    async def averaged(self, which: Averaged) -> Snapshot:
        """A copy of an average of the weights. Raises: InvalidField when there is none."""
        async with self._turns.writing:
            self._check_alive()
            copied = await self.lane.run(averaged, self._state.read_state(), self.plan, which)
            return Copied(copied, self.version)

    async def state(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        """A copy of the optimizer's state: metadata, and `<tensor>.<buffer>` → tensor."""
        async with self._turns.writing:
            self._check_alive()
            copied = await self.lane.run(export_state, self._state.read_state(), self.plan)
            return {**copied[0], "etag": self.version.etag}, copied[1]

    async def moved_from(self, match: Match, timeout_s: float) -> bool:
        """Wait until the session stands elsewhere than ``match`` says, or is deleted; False when neither came."""
        return await self._waiters.until(lambda: self.deleted or not match.accepts(self.version), timeout_s)

    def stop_waiting(self) -> None:
        """Let those go who wait for a step: the server ends, and would wait for them."""
        self._waiters.send_home()

    async def exchange(self, wanted: OptimizerExchange, match: Match | None) -> tuple[Exchange, Version]:
        """Give the session another optimizer: what became of the old one's state, and where the session stands then.

        Raises: SessionNotFound, StaleStep, InvalidField, InvalidHyperparameter, InsufficientMemory, StateDamaged.
        """
        async with self.replacing(match):
            await self.lane.run(lambda: rehearse(exchange(self.plan, wanted).after))  # while others may still pull
            async with self._turns.writing:
                self._check_alive()
                change = await self.lane.run(self._exchange, wanted)
                version = self.version
        self._event("optimizer_changed", change.report())
        self._waiters.wake()
        return change, version

    def _exchange(self, wanted: OptimizerExchange) -> Exchange:
        change = exchange(self.plan, wanted)
        old = change.moving(self._state.read_state())
        self._replace(lambda working: exchange_(working, change, old), change.after.buffers)
        self.plan = change.after
        return change

    async def change(self, change: SessionChange) -> None:
        """Change name, policy or hyperparameters for all later steps; all or nothing.

        Raises: SessionNotFound, InvalidField, InvalidHyperparameter.
        """
        # Not while a step is taken: a new schedule begins behind it.
        async with self._turns.writing:
            self._check_alive()
            await self.lane.run(self._change, change)
        self._event("changed", change.model_dump(mode="json", exclude_unset=True))

    def _change(self, change: SessionChange) -> None:
        own = own_values([(group.name, group.hyperparameters) for group in change.groups])
        settings = self.settings.changed(change.optimizer, own)
        plan = replace(self.plan, settings=settings, policy=self.policy.changed(change, self.version.step))
        rehearse(plan)
        self.plan = plan
        self.name = self.name if change.name is None else change.name

    async def delete(self) -> None:
        """Wait for the push that is being applied, and take no other."""
        async with self._turns.writing:
            self.deleted = True
        self._waiters.wake()

    def _check_alive(self) -> None:
        if self.deleted:
            raise SessionNotFound(f"The session {self.id} has been deleted.")

    def _event(self, kind: str, detail: dict[str, Any]) -> None:
        self._history.event(EventRow(self.id, kind, self.version.step, detail))
