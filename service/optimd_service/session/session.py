"""A session: the one place where weights, optimizer and history meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from optimd_service.errors import Problem, SessionNotFound, StaleReplica, StateDamaged, StepUndone
from optimd_service.history import History
from optimd_service.optim.update import Workplace
from optimd_service.session.arithmetic import Lane
from optimd_service.session.averages import Averaged, Copied, averaged
from optimd_service.session.contribution import Part
from optimd_service.session.exported import export_state
from optimd_service.session.following import Following
from optimd_service.session.gradients import scale_of
from optimd_service.session.held import Held, Moving
from optimd_service.session.incoming import Incoming
from optimd_service.session.kept import Keeping
from optimd_service.session.part import Arriving, PartBody
from optimd_service.session.plan import HELD, Plan
from optimd_service.session.policy import Policy
from optimd_service.session.preconditions import Match, Precondition
from optimd_service.session.push import Push
from optimd_service.session.rebuilding import place_of
from optimd_service.session.segments import Segments
from optimd_service.session.settings import Settings
from optimd_service.session.sharing import LOOK_EVERY_S, STEP_AGAIN, Sharing
from optimd_service.session.standing import Standing
from optimd_service.session.stepped import Stepped
from optimd_service.session.turns import Turns
from optimd_service.session.upkeep import Upkeep, require_kept
from optimd_service.session.waiters import Waiters
from optimd_service.store.checkpoint import CheckpointInfo
from optimd_service.store.contract import Snapshot, StoredState
from optimd_service.store.failpoints import failpoint
from optimd_service.types import EventRow, Layout, Receipt, StepRow, Version
from optimd_service.wire.encode import Encoder
from optimd_service.wire.landing import HeaderReader, PartReader
from optimd_service.wire.received import Received


class Session:
    """One model's weights, optimizer state and hyperparameters, and the order in which they change.

    Coroutines here may wait for other calls to this session, never for another session.

    Attributes:
      id: sorts by time of creation.
      standing: what it is, as it stands now.
      deleted: nothing is done for it any more.
      lane: the threads that compute for this session.
      held: what a client holds that is sent differences, if the session remembers it.
      upkeep: what keeps it on disk, if anything does.
      sharing: what tells of other servers' steps, where they serve it too.
      stored: its committed state.   turns: the order in which it changes.   waiters: for a newer version.
      headers, encoder: read and write bodies that hold this session's tensors.
      segments: where those of pushes meet that come over several connections.
    """

    def __init__(
        self,
        session_id: str,
        standing: Standing,
        state: StoredState,
        lane: Lane,
        history: History,
        upkeep: Upkeep | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.id = session_id
        self.standing = standing
        self.lane = lane
        self.headers = HeaderReader(*self.plan.pushes, by_rows=True)
        self.part_headers = PartReader(self.plan.pushes[1])
        self.weight_headers = HeaderReader(self.layout)
        self.encoder = Encoder(self.layout)
        self.stored = state
        self.held: Held | None = None
        self.hold_anew()
        self.upkeep = upkeep
        self.sharing = sharing
        self.turns = Turns(
            version=lambda: state.version,
            known=lambda key: state.recall(key) is not None,
            incoming=lambda: self.incoming(whole=False),
        )
        self.waiters = Waiters()
        self.segments = Segments()
        self.deleted = False
        self.history = history
        self._taken_at = state.version

    def hold_anew(self) -> None:
        """Know nothing of what a client holds any more: the buffer for it may be another."""
        if self.plan.policy.wire.difference:
            self.held = Held(self.stored.read_state().state[HELD])

    @property
    def tiny(self) -> bool:
        """Small enough in every respect to be stepped on the event loop."""
        return self.plan.tiny

    @property
    def plan(self) -> Plan:
        """What it does with the next push."""
        return self.standing.plan

    @property
    def takes_segments(self) -> bool:
        """Whether the body of a push may come over several connections."""
        return not self.tiny and not self.policy.on_device

    @property
    def layout(self) -> Layout:
        return self.standing.blueprint.layout

    @property
    def version(self) -> Version:
        return self.stored.version

    @property
    def loss_scale_now(self) -> float | None:
        """What the next loss is to be multiplied by; None without loss scaling."""
        return scale_of(self.policy, self.stored.numbers) if self.policy.loss_scale else None

    @property
    def held_bytes(self) -> int:
        """Weights, gradient buffer and state."""
        return self.stored.held_bytes

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
        return self.stored.grads

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
        return self.turns.push(precondition, whole=whole)

    @asynccontextmanager
    async def assembling(self, part: Part, precondition: Precondition) -> AsyncIterator[Arriving]:
        """Hold the session for one part of a push, which arrives and is kept inside, or applied if it completes it.

        Raises: StaleStep, SessionNotFound; of one that completes it, what ``pushing`` raises.
        """
        turn = self.pushing(precondition, whole=False) if part.completes else self._taking(precondition.match)
        async with turn:
            yield Arriving(self.turns.contribution(part.contribution), part.completes, self.layout)

    async def keep(self, part: PartBody) -> Stepped:
        """Keep a part of a push until one comes that completes it; inside ``assembling``.

        Raises: SessionNotFound, and what ``Push.keep`` raises.
        """
        async with self.writing():
            push = Push(self.id, part, None, self.stored, self.plan)
            receipt = push.keep() if part.quick else await self.lane.run(push.keep)
            return Stepped(receipt, self.stored.snapshot())

    def incoming(self, *, whole: bool = True) -> Incoming | None:
        """What receives the gradients of a push; those of a tiny session are judged as fast when they are there.

        Args:
          whole: they come in one body.
        """
        if self.tiny or self.policy.on_device:
            return None
        widens = self.policy.writes_gradients or not whole
        keeping = self._keeping() if whole else None
        return Incoming(self.grads, self.layout.trained.numel, widens=widens, keeping=keeping)

    def _keeping(self) -> Keeping | None:
        return Keeping(self.stored) if self.stored.records and self.sharing is None else None

    @property
    def follows(self) -> bool:
        """Whether new weights may leave while others are stepped: not where the step could still be undone."""
        return not self.tiny and not self.stored.records

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
        async with self.turns.writing:
            self.check_alive()
            begun = None if incoming is None else incoming.keeping
            keeping = self._keeping() if begun is None else begun  # what comes in parts is kept when all of it is there
            at = self.standing.now()
            push = Push(self.id, received, precondition.key, self.stored, self.plan, incoming, following, keeping, at)
            here = self.tiny and received.quick and not self.stored.records
            if self.sharing is not None:
                stepped = await self.lane.run(self._apply_shared, push, precondition)
            else:
                stepped = self._apply(push) if here else await self.lane.run(self._apply, push)
        self.waiters.wake()
        if self.upkeep is not None:
            self.upkeep.look_after(self._checkpoint, self.held_bytes)
        failpoint("session.before_reply")
        return stepped

    def _apply_shared(self, push: Push, precondition: Precondition) -> Stepped:
        """Apply a push to what is committed now, whoever has committed it; again, if somebody else was faster."""
        again = STEP_AGAIN if push.may_repeat else 0
        while True:
            self._catch_up()
            if self.plan is not push.usual:
                raise StaleReplica(
                    "Another server has changed this session's settings while the push arrived; nothing was stepped. "
                    "Send the same push again.",
                    step=self.version.step,
                )
            self.turns.check(precondition)
            try:
                return self._apply(push)
            except StaleReplica:
                if not again:
                    raise
                again -= 1

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
        try:
            failpoint("session.received")
            receipt = push.apply(self._place)
            failpoint("session.after_commit")
        except StateDamaged as damaged:
            self.mend(damaged)
            raise
        finally:
            if push.keeping is not None:
                push.keeping.discard()
        self.turns.forget()  # accumulated or skipped, it leaves the version as it is
        if not receipt.duplicate:
            self._record(push, receipt)
        return Stepped(receipt, self.stored.snapshot())

    @property
    def _place(self) -> Workplace:
        return place_of(self.plan, self.lane)

    def mend(self, damaged: StateDamaged) -> None:
        """After an update that failed half-way, go back to what is on disk. Raises: what the update failed for."""
        if self.sharing is not None:
            with suppress(Problem):  # whoever asks next for the session tries again
                self._catch_up()
        elif self.upkeep is None:
            return
        self.turns.forget()  # gradients that came in parts have been worked on where they lie, or replayed over
        if self.upkeep is not None:
            self.standing = self.upkeep.rebuild()
        self.hold_anew()
        if isinstance(damaged.__cause__, Problem):
            raise damaged.__cause__
        raise StepUndone("The update failed half-way and was undone; nothing was changed. Push again.") from damaged

    def _record(self, push: Push, receipt: Receipt) -> None:
        if receipt.outcome == "applied":
            facts = push.facts
            self.history.step(StepRow(receipt, push.at, facts.num_examples, facts.worker, facts.hyperparameters))
        elif receipt.outcome == "skipped_nonfinite":
            self.standing = replace(self.standing, skipped=self.standing.skipped + 1)
            self.event(receipt.outcome, {"loss": receipt.loss, "worker": push.facts.worker})

    @asynccontextmanager
    async def replacing(self, match: Match | None) -> AsyncIterator[None]:
        """Hold the session while weights or state are sent to replace its own. Raises: StaleStep, SessionNotFound."""
        async with self._taking(match):
            self.turns.forget()
            yield

    @asynccontextmanager
    async def _taking(self, match: Match | None) -> AsyncIterator[None]:
        async with self.turns.taking:
            await self.catch_up()
            self.check_alive()
            if match:
                match.check(self.version)
            self._taken_at = self.version
            yield

    def move(self, shown: str | None) -> Moving | None:
        """Begin a reply to a client that shows what it holds, as ``Held`` has it; None to one that shows nothing."""
        return None if self.held is None or shown is None else self.held.move(shown)

    async def pull(self) -> Snapshot:
        """Hold the weights of exactly one version; whoever is given them releases them."""
        async with self.writing():
            return self.stored.snapshot()

    async def averaged(self, which: Averaged) -> Snapshot:
        """A copy of an average of the weights. Raises: InvalidField when there is none."""
        async with self.writing():
            copied = await self.lane.run(averaged, self.stored.read_state(), self.plan, which)
            return Copied(copied, self.version)

    async def state(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        """A copy of the optimizer's state: metadata, and `<tensor>.<buffer>` → tensor."""
        async with self.writing():
            copied = await self.lane.run(export_state, self.stored.read_state(), self.plan)
            return {**copied[0], "etag": self.version.etag}, copied[1]

    async def moved_from(self, match: Match, timeout_s: float) -> bool:
        """Wait until the session stands elsewhere than ``match`` says, or is deleted; False when neither came."""

        def has_moved() -> bool:
            return self.deleted or not match.accepts(self.version)

        if self.sharing is None:
            return await self.waiters.until(has_moved, timeout_s)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.waiters.may_wait and (left := deadline - loop.time()) > 0:
            if await self.waiters.until(has_moved, min(left, LOOK_EVERY_S)):
                return True
            await self.catch_up()
        return has_moved()

    def stop_waiting(self) -> None:
        """Let those go who wait for a step: the server ends, and would wait for them."""
        self.waiters.send_home()

    async def catch_up(self) -> None:
        """Take in what other servers have done to a session that they serve too.

        Raises: SessionNotFound, SessionLost, StaleReplica, RedisUnavailable, InsufficientMemory.
        """
        if self.sharing is None:
            return
        async with self.writing():
            before = self.version
            await self.lane.run(self._catch_up)
        if self.version != before:
            self.waiters.wake()

    def _catch_up(self) -> None:
        if self.sharing is not None:
            self.standing = self.sharing.catch_up(self.standing)

    def check_unmoved(self) -> None:
        """A turn began at some version; somebody's pull may have taken in what another server has done since."""
        if self.sharing is not None and self.version != self._taken_at:
            raise StaleReplica(
                "Another server has changed this session meanwhile; nothing was changed here. Send the same again.",
                step=self.version.step,
                base_step=self._taken_at.step,
            )

    async def delete(self) -> None:
        """Wait for the push that is being applied, and take no other."""
        async with self.turns.writing:
            self.deleted = True
        if self.upkeep is not None:
            await self.upkeep.close()
            async with self.upkeep.alone:  # nobody reads any more what is about to go
                pass
        self.waiters.wake()

    async def close(self) -> None:
        """Keep what a crash would lose. Nothing is asked of it afterwards. Never raises."""
        upkeep = self.upkeep
        if upkeep is None or self.deleted:
            return
        if not self.stored.records:
            await upkeep.quietly(self._checkpoint)
        await upkeep.close()

    async def _checkpoint(self) -> None:
        upkeep = require_kept(self.upkeep)
        async with upkeep.alone:
            if upkeep.behind:
                await self.save(upkeep)

    async def save(
        self, upkeep: Upkeep, label: str | None = None, unlabelled: str | None = None, *, retain: bool = True
    ) -> CheckpointInfo | None:
        """Make a checkpoint of the session as it stands now, and say what it is; None if the session ends meanwhile.

        Whoever asks for it holds ``upkeep.alone``.

        Args:
          unlabelled: a label that it is not to keep, should it take another's place.
          retain: give up older ones.

        Raises: SessionNotFound, StateDamaged, DiskFull, JournalFailed.
        """
        async with self.writing():
            saving = await self.lane.run(upkeep.save, self.standing, label, unlabelled)
            step = self.version.step
        return await upkeep.finish(saving, step, retain=retain)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Hold the session while its buffers are written, or must stay as they are. Raises: SessionNotFound."""
        async with self.turns.writing:
            self.check_alive()
            yield

    def check_alive(self) -> None:
        """Raises: SessionNotFound."""
        if self.deleted:
            raise SessionNotFound(f"The session {self.id} has been deleted.")

    def moved(self, kind: str, detail: dict[str, Any]) -> None:
        """Say that the session stands elsewhere now: an event, and whoever waits for that."""
        self.event(kind, detail)
        self.waiters.wake()

    def event(self, kind: str, detail: dict[str, Any]) -> None:
        """Record what happened between steps."""
        self.history.event(EventRow(self.id, kind, self.version.step, detail))
