"""One session on the server: push gradients, step, pull weights, look back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

from optimd._core import TRACKED, IfMatch, Pull, SessionCore, Tensors, step_metadata
from optimd._drive import AsyncDriver, Driver
from optimd._safetensors import Array
from optimd._sink import Out
from optimd.models import Event, Receipt, SessionInfo, StateDict, Step, StepResult, WireDtype


class _Handle:
    """What a session handle knows without asking."""

    _core: SessionCore

    @property
    def id(self) -> str:
        """The session's id on the server."""
        return self._core.id

    @property
    def info(self) -> SessionInfo:
        """The session as the server last described it; `refresh` asks anew."""
        return self._core.info

    @property
    def etag(self) -> str | None:
        """The version that any reply named last, such as "3.0"; a step builds on it unless told otherwise."""
        return self._core.etag

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} etag={self.etag}>"


class Session(_Handle):
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
        grads: Tensors,
        *,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        pull: Pull | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
        out: Out | None = None,
    ) -> StepResult:
        """Push gradients, step, and pull the new weights, in one round trip that happens once however often retried.

        Args:
          grads: tensor name → gradient, of every tensor of the session.
          loss: recorded beside the step; one that is not finite cannot be written and is left out.
          num_examples, worker: recorded beside the step.
          hyperparameters: for this step alone, such as `{"lr": 0.1, "groups": {"no_decay": {"lr": 0.2}}}`.
          pull: dtype of the weights in the reply (default: the session's), or "none" for the receipt alone.
          if_match: version that the gradients belong to: by default `etag`, the one this handle has seen last; None
            to step whatever the version, as several workers do.
          key: Idempotency-Key, 1 to 255 visible ASCII characters; by default a fresh one.
          out: tensor name → array to write the new weights into. When the call raises, they may be half written.

        Returns: the receipt, and the weights: views of one newly received buffer, or the arrays of ``out``.

        Raises: StaleStep when the session has moved past ``if_match``; NonfiniteGradients, TensorMismatch,
          ShapeMismatch, InvalidHyperparameter, KeyReused, SessionLost; ValueError for an unusable ``out``.
        """
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return self._run(self._core.step(grads, metadata, pull, if_match, key, out))

    def push(
        self,
        grads: Tensors,
        *,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
    ) -> Receipt:
        """`step` without the weights: the receipt alone."""
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return self._run(self._core.step(grads, metadata, "none", if_match, key, None)).receipt

    def pull(
        self, names: Sequence[str] | None = None, dtype: WireDtype | None = None, out: Out | None = None
    ) -> dict[str, Array]:
        """The weights of exactly one step.

        Args:
          names: some of the tensors; by default all.
          dtype: on the wire, by default the session's; BF16 is given as float32.
          out: tensor name → array to write into. When the call raises, they may be half written.

        Returns: tensor name → array; a RawTensor in ``out`` is written and not listed.
        """
        return self._run(self._core.pull(names, dtype, out))

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

    def put_state(self, state: StateDict, *, if_match: IfMatch = None) -> None:
        """Set the whole optimizer state; the weights stay. Raises: NonfiniteParams, TensorMismatch, ShapeMismatch."""
        self._run(self._core.put_state(state, if_match))

    def update(
        self,
        *,
        optimizer: Mapping[str, Any] | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        nonfinite: str | None = None,
    ) -> SessionInfo:
        """Change hyperparameters, the name or the non-finite policy from the next step on; recorded as an event.

        Args:
          optimizer: such as `{"lr": 0.01}`; holds for every group without an override of its own.
          groups: such as `[{"name": "no_decay", "lr": 0.02}]`.
        """
        return self._run(self._core.update(optimizer=optimizer, groups=groups, name=name, nonfinite=nonfinite))

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


class AsyncSession(_Handle):
    """`Session` for asyncio: the same calls, awaited; histories are read with `async for`."""

    def __init__(self, core: SessionCore, run: AsyncDriver) -> None:
        self._core = core
        self._run = run

    async def step(
        self,
        grads: Tensors,
        *,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        pull: Pull | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
        out: Out | None = None,
    ) -> StepResult:
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return await self._run(self._core.step(grads, metadata, pull, if_match, key, out))

    async def push(
        self,
        grads: Tensors,
        *,
        loss: SupportsFloat | None = None,
        num_examples: int | None = None,
        worker: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        if_match: IfMatch = TRACKED,
        key: str | None = None,
    ) -> Receipt:
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return (await self._run(self._core.step(grads, metadata, "none", if_match, key, None))).receipt

    async def pull(
        self, names: Sequence[str] | None = None, dtype: WireDtype | None = None, out: Out | None = None
    ) -> dict[str, Array]:
        return await self._run(self._core.pull(names, dtype, out))

    async def wait(
        self,
        timeout_s: float = 30.0,
        names: Sequence[str] | None = None,
        dtype: WireDtype | None = None,
        out: Out | None = None,
    ) -> dict[str, Array] | None:
        return await self._run(self._core.wait(timeout_s, names, dtype, out))

    async def put_params(self, params: Tensors, *, if_match: IfMatch = None) -> None:
        await self._run(self._core.put_params(params, if_match))

    async def state(self) -> StateDict:
        return await self._run(self._core.state())

    async def put_state(self, state: StateDict, *, if_match: IfMatch = None) -> None:
        await self._run(self._core.put_state(state, if_match))

    async def update(
        self,
        *,
        optimizer: Mapping[str, Any] | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        nonfinite: str | None = None,
    ) -> SessionInfo:
        return await self._run(self._core.update(optimizer=optimizer, groups=groups, name=name, nonfinite=nonfinite))

    async def refresh(self) -> SessionInfo:
        return await self._run(self._core.refresh())

    def history(self, after: int = 0, limit: int | None = None) -> AsyncIterator[Step]:
        return self._run.rows(self._core.history, after, limit)

    async def recorded(self, step: int) -> Step:
        return await self._run(self._core.recorded(step))

    def events(self, limit: int | None = None) -> AsyncIterator[Event]:
        return self._run.rows(self._core.events, 0, limit)

    async def delete(self) -> None:
        await self._run(self._core.delete())
