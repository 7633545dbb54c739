"""One push, from its arrived body to its receipt. Runs in a thread, one at a time for a session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import torch

from optimd_service.errors import KeyReused, NonfiniteGradients
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.judge import judge, nonfinite_tensors, zero_nonfinite_
from optimd_service.optim.schedules import advance
from optimd_service.optim.update import Workplace
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.facts import StepFacts
from optimd_service.session.following import Following
from optimd_service.session.gradients import gather_, is_within_range, rescale_, scale_of, temper_
from optimd_service.session.kept import Keeping
from optimd_service.session.plan import SCHEDULE, Plan
from optimd_service.session.rows import Landed, require_rows
from optimd_service.session.settings import group_overrides
from optimd_service.session.updating import average_, update_groups_
from optimd_service.session.writing import writing
from optimd_service.store.contract import Record, Remembered, StoredState, Working
from optimd_service.store.failpoints import failpoint
from optimd_service.types import Outcome, Receipt, Version, once, utc_now
from optimd_service.wire.json import finite_or_none
from optimd_service.wire.received import Received

PUSH = "push"
"""The kind of a push's record."""


class Arrived(Protocol):
    """What has received a push."""

    @property
    def buffer(self) -> torch.Tensor:
        """Where it lies, shape [at least its elements]."""

    @property
    def norm(self) -> float | None:
        """The gradients' 2-norm, if they were judged on their way."""


@dataclass(eq=False)
class Push:
    """A push that has arrived whole, and all that decides what it does.

    Attributes:
      session: id, for the receipt.
      usual: the session's plan, before this push's own ``hyperparameters``.
      incoming: where the gradients lie, if they did not wait to be landed.
      following: whoever reads the new weights while they are written.
      keeping: takes the gradients for a store that keeps them; perhaps it has, as they came.
      at: when it is committed.
    """

    session: str
    received: Received
    key: str | None
    state: StoredState
    usual: Plan
    incoming: Arrived | None = None
    following: Following | None = None
    keeping: Keeping | None = None
    at: datetime = field(default_factory=utc_now)

    @once
    def facts(self) -> StepFacts:
        return StepFacts.read(self.received.fields())

    @once
    def digest(self) -> bytes:
        return self.received.digest()

    @once
    def grads(self) -> torch.Tensor:
        """The gradients where they landed, shape [landed.layout.trained.numel]."""
        trained = self.landed.layout.trained.numel
        return self.buffer if self.buffer.numel() == trained else self.buffer[:trained]

    @property
    def buffer(self) -> torch.Tensor:
        """Where the push lies, shape [pushable]."""
        return self.state.grads if self.incoming is None else self.incoming.buffer

    @once
    def landed(self) -> Landed:
        """How the gradients lie. Raises: InvalidField, ShapeMismatch, for rows that cannot be stepped with."""
        given = self.received.rows(self.state.layout.pushable)
        if given:
            require_rows(self.plan, self._scheduled(self.state.read_state())[0], given)
        return Landed.of(self.state.layout, given)

    @property
    def may_repeat(self) -> bool:
        """Whether the gradients are, after they were stepped with, what they were before."""
        policy = self.usual.policy
        changed = policy.writes_gradients or policy.maximize or policy.accumulate is not None
        return not changed and policy.nonfinite != "zero"

    def apply(self, place: Workplace) -> Receipt:
        """Step, completely or not at all, or find the receipt of the push that this one repeats.

        Args:
          place: where the arithmetic is done.

        Raises: KeyReused, InvalidField, InvalidHyperparameter, TensorMismatch, ShapeMismatch, NonfiniteGradients,
        NonfiniteParams, InsufficientMemory, StateDamaged.
        """
        first = self.state.recall(self.key) if self.key is not None else None
        if first:
            return self._repeated(first)
        if self.key is not None:
            _ = self.digest  # of the body as it came: gradients are worked on where it landed
        plan = self.plan
        norm = self._land(place)
        with writing(self.state, plan.buffers, self.session) as working:
            return self._skip(working) if norm is None else self._step(working, norm, place)

    def keep(self) -> Receipt:
        """Land a part of a push, of which more must come.

        Raises: InvalidField, TensorMismatch, ShapeMismatch, StateDamaged.
        """
        working = self.state.read_state()
        _, lr = self._scheduled(working)
        self.received.land_(self.state.grads, self.state.layout.pushable)
        return self._receipt(working, self.state.version.step, "buffered", lr)

    def _repeated(self, first: Remembered) -> Receipt:
        if first.digest != self.digest:
            raise KeyReused(
                f"This Idempotency-Key belongs to a push that led to step {first.receipt.step} and had another body. "
                "Use a new key for new gradients."
            )
        return first.receipt._replace(duplicate=True)

    @once
    def overrides(self) -> tuple[Mapping[str, object], Mapping[str, Mapping[str, object]]]:
        """What holds for this step alone: for every group, and by group."""
        given = self.facts.hyperparameters
        return ({}, {}) if given is None else group_overrides(given)

    @once
    def plan(self) -> Plan:
        base, own = self.overrides
        if not base and not own:
            return self.usual
        return replace(self.usual, settings=self.usual.settings.changed(base, own, said_in="hyperparameters"))

    def _land(self, place: Workplace) -> float | None:
        """Write the body into the session's buffer and judge the gradients: their norm, or None to skip the step."""
        landed, layout = self.landed, self.landed.layout
        holds_buffers = self.received.holds_buffers(layout)
        of_push = layout.pushable if holds_buffers else layout.trained
        self.received.land_(self.buffer, of_push, landed.grads)
        landed.land_(self.buffer)
        if self.keeping is not None and self.keeping.entry is None:
            self.keeping.keep(self.buffer[: of_push.numel], {name: rows for name, (rows, _) in landed.grads.items()})
        if holds_buffers:
            refuse_nonfinite(self._landed_buffers, layout.of_buffers)
        policy = self.usual.policy
        seen = None if self.incoming is None else self.incoming.norm
        norm = judge(self.grads, place.each) if seen is None else seen
        if not norm < math.inf and policy.nonfinite == "zero" and policy.loss_scale is None:
            self._settle()
            zero_nonfinite_(self.grads)
            norm = judge(self.grads, place.each)
        if is_within_range(self.grads, norm, policy, self.state.numbers, self.plan.longest):
            return norm
        if policy.nonfinite == "skip" or policy.loss_scale is not None:
            return None
        names = nonfinite_tensors(self.grads, layout.trained)
        found = f"NaN or infinity in the gradients of {', '.join(map(repr, names))}"
        raise NonfiniteGradients(
            f"{found if names else 'These gradients, or their sum with those before them, are too large to step'}. "
            "Nothing was changed: lower the learning rate or look at the loss, or create the session with `nonfinite` "
            "skip or zero.",
            tensors=names,
        )

    def _settle(self) -> None:
        """From here on the gradients may be worked on where they lie."""
        if self.keeping is not None:
            self.keeping.settle()

    @property
    def _landed_buffers(self) -> torch.Tensor:
        """The new values of buffers, behind the gradients."""
        layout = self.landed.layout
        return self.buffer[layout.trained.numel : layout.pushable.numel]

    def _step(self, working: Working, norm: float, place: Workplace) -> Receipt:
        plan, policy, layout = self.plan, self.plan.policy, self.state.layout
        if policy.writes_gradients or policy.maximize:
            self._settle()
        gathered = gather_(self.grads, norm, policy, working, place)
        if gathered is None:
            return self._unmoved(working, "buffered")
        grads, norm = gathered
        grad_norm, clip_scale = temper_(grads, working.params, norm, policy, self.landed, place)
        resolved, lr = self._scheduled(working)
        self._advance_schedule(working)
        following = self.following
        if following is not None:
            following.begin(working.params, Version(self.state.version.step + 1, self.state.version.generation))
        wrote = None if following is None else following.wrote
        if self.state.records:  # not of what is rehearsed or done again
            failpoint("session.before_update")
        norms = update_groups_(working, grads, plan, resolved, place, self.landed, wrote)
        if self.state.records:
            failpoint("session.mid_update")
        if self.received.holds_buffers(layout):
            buffers = slice(layout.trained.numel, layout.pushable.numel)
            working.params[buffers] = self._landed_buffers
        average_(working, plan, self.state.version.step + 1, place)
        rescale_(policy, working, finite=True)
        receipt = self._receipt(working, self.state.version.step + 1, "applied", lr)._replace(
            grad_norm=grad_norm,
            clip_scale=clip_scale,
            update_norm=finite_or_none(norms.update),
            param_norm=finite_or_none(norms.param),
        )
        return self._commit(working, receipt)

    def _scheduled(self, working: Working) -> tuple[Mapping[str, Hyperparameters], float]:
        """Each group's hyperparameters for this step, and the session's learning rate.

        What the push itself says wins over the schedule.
        """
        settings, policy = self.plan.settings, self.plan.policy
        if policy.schedule is None:
            return settings.resolved, settings.session_wide.lr
        base, own = self.overrides
        step, memory = self.state.version.step, working.numbers.get(self._schedules_own, {})
        said = {group: {*base, *own.get(group, {})} for group in settings.resolved}
        resolved = policy.scheduled(settings.resolved, step, memory, said)
        whole = policy.scheduled({"": settings.session_wide}, step, memory, {"": base})[""]
        return resolved, whole.lr

    @property
    def _schedules_own(self) -> str:
        """Where the schedule's memory is; by where it began, so that one that replaced another remembers nothing."""
        return f"{SCHEDULE}.{self.plan.policy.schedule_from}"

    def _advance_schedule(self, working: Working) -> None:
        schedule, owner = self.plan.policy.schedule, self._schedules_own
        if schedule is not None:
            working.numbers[owner] = advance(schedule, working.numbers.get(owner, {}), self.facts.loss)

    def _commit(self, working: Working, receipt: Receipt) -> Receipt:
        version = Version(receipt.step, self.state.version.generation)
        record = self._record(receipt, version) if self.state.records else None
        self.state.commit(working, version, self._remembered(receipt), record)
        return receipt

    def _record(self, receipt: Receipt, version: Version) -> Record:
        fields = {
            "version": version,
            "key": self.key,
            "digest": None if self.key is None else self.digest.hex(),
            "buffers": self.received.holds_buffers(self.state.layout),
            "payload": None if self.keeping is None else self.keeping.payload,
            "facts": self.facts.to_json(),
            "receipt": receipt._asdict(),
            "at": self.at.isoformat(),
        }
        return Record(PUSH, fields, None if self.keeping is None else self.keeping.entry)

    def _skip(self, working: Working) -> Receipt:
        rescale_(self.plan.policy, working, finite=False)
        return self._unmoved(working, "skipped_nonfinite")

    def _unmoved(self, working: Working, outcome: Outcome) -> Receipt:
        """Keep what was learned from a push that is no step."""
        _, lr = self._scheduled(working)
        return self._commit(working, self._receipt(working, self.state.version.step, outcome, lr))

    def _receipt(self, working: Working, step: int, outcome: Outcome, lr: float) -> Receipt:
        return Receipt(
            session=self.session,
            step=step,
            base_step=self.state.version.step,
            outcome=outcome,
            lr=lr,
            loss=self.facts.loss,
            grad_norm=None,
            clip_scale=1.0,
            update_norm=0.0,
            param_norm=None,
            durable_step=self.state.durable_with(step),
            loss_scale=scale_of(self.plan.policy, working.numbers),
        )

    def _remembered(self, receipt: Receipt) -> Mapping[str, Remembered]:
        return {} if self.key is None else {self.key: Remembered(receipt, self.digest)}
