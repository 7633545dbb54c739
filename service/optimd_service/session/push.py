"""One push, from its arrived body to its receipt. Runs in a thread, one at a time for a session."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from optimd_service.errors import KeyReused, NonfiniteGradients, StateDamaged
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.judge import judge, nonfinite_tensors, zero_nonfinite_
from optimd_service.optim.update import Norms, Workplace, update_
from optimd_service.session.facts import StepFacts
from optimd_service.session.settings import Settings, group_overrides
from optimd_service.store.contract import Remembered, StoredState, Working
from optimd_service.types import NonfinitePolicy, Outcome, Receipt, Version
from optimd_service.wire.json import finite_or_none
from optimd_service.wire.received import Received

log = logging.getLogger("optimd")


@dataclass(frozen=True)
class Push:
    """A push that has arrived whole, and all that decides what it does.

    Attributes:
      session: id, for the receipt.
      settings: the session's, before this push's own ``hyperparameters``.
    """

    session: str
    received: Received
    key: str | None
    state: StoredState
    settings: Settings
    nonfinite: NonfinitePolicy

    @cached_property
    def facts(self) -> StepFacts:
        return StepFacts.read(self.received.fields())

    @cached_property
    def digest(self) -> bytes:
        return self.received.digest()

    def apply(self, place: Workplace) -> Receipt:
        """Step, completely or not at all, or find the receipt of the push that this one repeats.

        Args:
          place: where the arithmetic is done.

        Raises: KeyReused, InvalidField, InvalidHyperparameter, TensorMismatch, ShapeMismatch, NonfiniteGradients,
        InsufficientMemory, StateDamaged.
        """
        first = self.state.recall(self.key) if self.key is not None else None
        if first:
            return self._repeated(first)
        if self.key is not None:
            _ = self.digest  # of the body as it came: what is not finite may be zeroed where it landed
        settings = self._settings()
        grad_norm = self._land(place)
        if grad_norm is None:
            return self._skipped(settings)
        working = self.state.begin(settings.buffers)
        try:
            norms = self._update(working, settings, place)
        except Exception as error:
            self.state.abandon(working, written=True)
            log.exception("session %s: an update failed half-way", self.session)
            raise StateDamaged("The update failed half-way; create a new session from your last pull.") from error
        return self._commit(working, settings, grad_norm, norms)

    def _repeated(self, first: Remembered) -> Receipt:
        if first.digest != self.digest:
            raise KeyReused(
                f"This Idempotency-Key belongs to a push that led to step {first.receipt.step} and had another body. "
                "Use a new key for new gradients."
            )
        return first.receipt._replace(duplicate=True)

    def _settings(self) -> Settings:
        overrides = self.facts.hyperparameters
        return (
            self.settings
            if overrides is None
            else self.settings.changed(*group_overrides(overrides), said_in="hyperparameters")
        )

    def _land(self, place: Workplace) -> float | None:
        """Write the gradients into the session's buffer and judge them: their norm, or None to skip the step."""
        grads, layout = self.state.grads, self.state.layout
        self.received.land_(grads, layout)
        norm = judge(grads, place.each)
        if norm < float("inf"):
            return norm
        if self.nonfinite == "skip":
            return None
        if self.nonfinite == "zero":
            zero_nonfinite_(grads)
            return judge(grads, place.each)
        names = nonfinite_tensors(grads, layout)
        raise NonfiniteGradients(
            f"NaN or infinity in the gradients of {', '.join(map(repr, names))}. Nothing was changed: lower the "
            "learning rate or look at the loss, or create the session with `nonfinite` skip or zero.",
            tensors=names,
        )

    def _update(self, working: Working, settings: Settings, place: Workplace) -> Norms:
        working.updates += 1
        layout, parts = self.state.layout, []
        for name in layout.groups:
            hyper = settings.resolved[name]
            buffers = settings.optimizer.state(hyper)
            group = FlatGroup(
                layout.cut(working.params, name),
                layout.cut(self.state.grads, name),
                {buffer: layout.cut(working.state[buffer], name) for buffer in buffers},
                working.updates,
                fresh=any((name, buffer) not in working.started for buffer in buffers),
            )
            parts.append(update_(settings.optimizer, group, hyper, place))
            working.started.update((name, buffer) for buffer in buffers)
        return Norms.joined(parts)

    def _commit(self, working: Working, settings: Settings, grad_norm: float, norms: Norms) -> Receipt:
        at = self.state.version
        receipt = self._receipt(at.step + 1, "applied", settings, grad_norm, norms)
        self.state.commit(working, Version(at.step + 1, at.generation), self._remembered(receipt))
        return receipt

    def _skipped(self, settings: Settings) -> Receipt:
        receipt = self._receipt(self.state.version.step, "skipped_nonfinite", settings, None, None)
        self.state.remember(self._remembered(receipt))
        return receipt

    def _receipt(
        self, step: int, outcome: Outcome, settings: Settings, grad_norm: float | None, norms: Norms | None
    ) -> Receipt:
        return Receipt(
            session=self.session,
            step=step,
            base_step=self.state.version.step,
            outcome=outcome,
            lr=settings.session_wide.lr,
            loss=self.facts.loss,
            grad_norm=grad_norm,
            clip_scale=1.0,
            update_norm=0.0 if norms is None else finite_or_none(norms.update),
            param_norm=None if norms is None else finite_or_none(norms.param),
            durable_step=self.state.durable_step,
        )

    def _remembered(self, receipt: Receipt) -> Mapping[str, Remembered]:
        return {} if self.key is None else {self.key: Remembered(receipt, self.digest)}
