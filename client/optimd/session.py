"""One session on the server: push gradients, step, pull weights, look back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsFloat, Unpack

from optimd._core import (
    UNCHANGED,
    Pull,
    SessionCore,
    Switched,
    pushed,
    session_changes,
    step_metadata,
)
from optimd._description import Tensors
from optimd._drive import Driver
from optimd._handle import Handle
from optimd._rows import Gradients
from optimd._safetensors import Array
from optimd._sink import Arriving, Out
from optimd._time_travel import TRACKED, IfMatch, moment
from optimd.models import (
    Averaged,
    Changes,
    Checkpoint,
    Event,
    ExchangeReport,
    Kept,
    Receipt,
    RollbackReport,
    SessionInfo,
    StateDict,
    Step,
    StepResult,
    WhatIfReport,
    WireDtype,
)


class Session(Handle):
    """A handle on one session, from `Client.create_session` or `Client.session`.

    Tensors are anything `numpy.asarray` takes, or a `RawTensor` for bytes that NumPy has no dtype for (bfloat16).
    C-contiguous float arrays are sent from where they lie and must not change during the call.

    Every call raises ConnectionFailed, TimedOut, MalformedReply, or the ProblemError that the server answered with.
    """

    def __init__(self, core: SessionCore, run: Driver) -> None:
        self._core = core
        self._run = run

    def step(
        self,
        grads: Gradients,
        *,
        buffers: Tensors | None = None,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        pull: Pull | None = None,
        send: WireDtype | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
        out: Out | None = None,
        arriving: Arriving | None = None,
        contribution: str | None = None,
    ) -> StepResult:
        """Push gradients, step, and pull the new weights, in one round trip that happens once however often retried.

        Args:
          grads: tensor name → gradient, of every tensor that is trained; a RowGradient for some rows of one alone.
          buffers: tensor name → new value, of every tensor whose role is "buffer"; they are stored with the step.
          loss: recorded beside the step; one that is not finite cannot be written and is left out.
          num_examples, worker: recorded beside the step.
          hyperparameters: for this step alone, such as `{"lr": 0.1, "groups": {"no_decay": {"lr": 0.2}}}`.
          pull: dtype of the weights in the reply (default: what the session's `wire` says), or "none" for the receipt
            alone.
          send: dtype that gradients are rounded to while they are sent (default: what `wire` says); arrays of no more
            bytes, RawTensors and buffers are sent as they are.
          if_match: version that the gradients belong to: by default `etag`, the one this handle has seen last; None
            to step whatever the version, as several workers do.
          key: Idempotency-Key, 1 to 255 visible ASCII characters; by default a fresh one.
          out: tensor name → array to write the new weights into. When the call raises, they may be half written. In a
            session whose `wire` says "difference", give it the same float32 arrays of all tensors at each step, and
            leave them as they are in between: they are read too.
          arriving: is told when the push has been judged, and then of each tensor of ``out`` as soon as it is there.
          contribution: name under which `contribute` has sent gradients ahead; ``grads`` are the rest of them.

        Returns: the receipt, and the weights: views of one newly received buffer, or the arrays of ``out``. They are
          the old ones unless the receipt's outcome is "applied".

        Raises: StaleStep when the session has moved past ``if_match``; NonfiniteGradients, TensorMismatch,
          ShapeMismatch, InvalidHyperparameter, KeyReused, SessionLost; ContributionIncomplete when gradients of
          ``contribution`` are missing or forgotten, and all are to be pushed whole; ValueError for an unusable ``out``.
        """
        metadata, tensors = step_metadata(loss, num_examples, worker, hyperparameters), pushed(grads, buffers)
        return self._run(self._core.step(tensors, metadata, pull, if_match, key, out, arriving, send, contribution))

    def contribute(
        self, grads: Gradients, *, contribution: str, send: WireDtype | None = None, if_match: IfMatch = TRACKED
    ) -> Receipt:
        """Send some of a step's gradients ahead. A `step` that names the same ``contribution`` brings the rest.

        The server keeps one contribution, and forgets it when the session moves or somebody else pushes.

        Args:
          grads: tensor name → gradient, at least one, each whole; one that comes again takes the other's place.
          contribution: 1 to 64 visible ASCII characters, another for each step, such as a UUID.
          send, if_match: as for `step`.

        Returns: a receipt whose outcome is "buffered"; nothing has changed.

        Raises: StaleStep, TensorMismatch, ShapeMismatch, InvalidField.
        """
        return self._run(self._core.contribute(grads, contribution, send, if_match))

    def push(
        self,
        grads: Gradients,
        *,
        buffers: Tensors | None = None,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        send: WireDtype | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
    ) -> Receipt:
        """`step` without the weights: the receipt alone."""
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return self._run(
            self._core.step(pushed(grads, buffers), metadata, "none", if_match, key, None, send=send)
        ).receipt

    def pull(
        self,
        names: Sequence[str] | None = None,
        dtype: WireDtype | None = None,
        out: Out | None = None,
        *,
        weights: Averaged | None = None,
    ) -> dict[str, Array]:
        """The weights of exactly one step.

        Args:
          names: some of the tensors; by default all.
          dtype: on the wire, by default what the session's `wire` says; BF16 is given as float32.
          out: tensor name → array to write into. When the call raises, they may be half written.
          weights: an average in place of the current ones, "ema" or "swa", or "eval" for those that the optimizer,
            such as a schedule-free one, is to be evaluated at.

        Returns: tensor name → array; a RawTensor in ``out`` is written and not listed.
        """
        return self._run(self._core.pull(names, dtype, out, weights))

    def wait(
        self,
        timeout_s: float = 30.0,
        names: Sequence[str] | None = None,
        dtype: WireDtype | None = None,
        out: Out | None = None,
    ) -> dict[str, Array] | None:
        """The weights as soon as they are newer than `etag`, or None when they are not within ``timeout_s``."""
        return self._run(self._core.wait(timeout_s, names, dtype, out))

    def put_params(self, params: Tensors, *, if_match: IfMatch = None) -> None:
        """Set every weight; the optimizer state stays. Raises: NonfiniteParams, TensorMismatch, ShapeMismatch."""
        self._run(self._core.put_params(params, if_match))

    def state(self) -> StateDict:
        """The optimizer state under torch's names."""
        return self._run(self._core.state())

    def put_state(self, state: StateDict, *, if_match: IfMatch = None, strict: bool = True) -> list[str]:
        """Set the optimizer state; the weights stay.

        Args:
          strict: the state must be the session's whole; else what it lacks stays, and what is foreign is passed over.

        Returns: names of the tensors that were passed over.

        Raises: NonfiniteParams, TensorMismatch, ShapeMismatch, InvalidField.
        """
        return self._run(self._core.put_state(state, if_match, strict))

    def change_optimizer(
        self, name: str, *, carry: Mapping[str, str] | None = None, if_match: IfMatch = TRACKED, **hyperparameters: Any
    ) -> ExchangeReport:
        """Give the session another optimizer from the next step on; the weights stay. `refresh` describes it then.

        State of the same names and shapes is carried over if that is all of the new optimizer's; what groups have of
        their own stays where the new optimizer has it too.

        Args:
          carry: further buffers to begin as others of the old optimizer: `{"momentum_buffer": "exp_avg"}`.
          if_match: as for `step`.
          hyperparameters: of the session as a whole; the new optimizer's defaults for the rest.

        Returns: what was carried over, and what was dropped.

        Raises: StaleStep, InvalidField, InvalidHyperparameter. It is not sent again when its reply is lost.
        """
        wanted = {"name": name, "carry": carry or {}, **hyperparameters}
        return self._run(self._core.change_optimizer(wanted, if_match))

    def update(
        self,
        *,
        optimizer: Mapping[str, Any] | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        nonfinite: str | None = None,
        wire: Mapping[str, Any] | None = None,
        schedule: Switched = UNCHANGED,
        clip: Switched = UNCHANGED,
    ) -> SessionInfo:
        """Change hyperparameters, name or policy from the next step on; recorded as an event. None changes nothing.

        Args:
          optimizer: such as `{"lr": 0.01}`; holds for every group without an override of its own.
          groups: such as `[{"name": "no_decay", "lr": 0.02}]`.
          wire: such as `{"params": "bf16"}`; what it does not name stays.
          schedule: a new one, which begins now; None ends the one there is.
          clip: how gradients are clipped; None for not at all.
        """
        others = {"optimizer": optimizer, "groups": groups, "name": name, "nonfinite": nonfinite, "wire": wire}
        changes = session_changes(schedule, clip, **others)
        return self._run(self._core.update(changes))

    def checkpoint(self, label: str | None = None) -> Checkpoint:
        """Keep the session as it stands now, on the server's disk.

        Args:
          label: to return to it by; it is kept until `remove_checkpoint`, or until another is given the label. Without
            one it is kept as long as it is among the newest.

        Raises: InvalidField for a session of which nothing is kept; DiskFull.
        """
        return self._run(self._core.checkpoint(label))

    def checkpoints(self) -> Kept:
        """What the session can go back to: checkpoints, and stretches of steps."""
        return self._run(self._core.checkpoints())

    def remove_checkpoint(self, label: str) -> None:
        """Remove the checkpoint of a label. Raises: StepNotRetained."""
        self._run(self._core.remove_checkpoint(label))

    def rollback(
        self,
        *,
        step: int | None = None,
        etag: str | None = None,
        label: str | None = None,
        if_match: IfMatch = None,
    ) -> RollbackReport:
        """Return to where the session stood: weights, moments, schedule, hyperparameters and history.

        Pull the weights then. Idempotency keys of the steps that are left behind are forgotten.

        Args:
          step, etag, label: one of them: behind that step, at exactly that version, at that checkpoint.
          if_match: as for `step`; with one, it is not sent again when its reply is lost.

        Raises: StepNotRetained, which says what is; StaleStep; InvalidField for a session of which nothing is kept.
        """
        return self._run(self._core.rollback(moment(step, etag, label), if_match))

    def fork(
        self, *, step: int | None = None, etag: str | None = None, label: str | None = None, **changes: Unpack[Changes]
    ) -> Session:
        """Make a session that begins where this one stands, or stood; this one stays as it is.

        Args:
          step, etag, label: as for `rollback`; none of them for where it stands now.
          changes: settings that are other there. ``optimizer`` are hyperparameters or, with a "name", another
            optimizer, as `change_optimizer` takes it.

        Raises: StepNotRetained, InvalidField, InvalidHyperparameter, InsufficientMemory. It is not sent again when its
          reply is lost.
        """
        return Session(self._run(self._core.fork(moment(step, etag, label) | {**changes})), self._run)

    def what_if(
        self, grads: Tensors, candidates: Sequence[Mapping[str, Any]], *, send: WireDtype | None = None
    ) -> WhatIfReport:
        """What one gradient would do under several settings; nothing is done.

        Args:
          grads: tensor name → gradient, of every tensor that is trained.
          candidates: at most 32, each settings as `fork` takes them, and perhaps a ``name``:
            `{"optimizer": {"name": "sgd", "lr": 0.1}, "clip": None}`.
          send: as for `step`.

        Raises: InvalidField, InvalidHyperparameter, NonfiniteGradients, InsufficientMemory.
        """
        return self._run(self._core.what_if(grads, candidates, send))

    def refresh(self) -> SessionInfo:
        """Ask for the session's description, and track its version."""
        return self._run(self._core.refresh())

    def history(self, after: int = 0, limit: int | None = None) -> Iterator[Step]:
        """The recorded steps greater than ``after``, ascending, fetched page by page."""
        return self._run.rows(self._core.history, after, limit)

    def recorded(self, step: int) -> Step:
        """One recorded step. Raises: StepNotFound."""
        return self._run(self._core.recorded(step))

    def events(self, limit: int | None = None) -> Iterator[Event]:
        """What happened between the steps, oldest first, fetched page by page."""
        return self._run.rows(self._core.events, 0, limit)

    def delete(self) -> None:
        """Remove the session, its weights and its history."""
        self._run(self._core.delete())
