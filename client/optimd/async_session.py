"""A session for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
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
from optimd._drive import AsyncDriver
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


class AsyncSession(Handle):
    """`Session` for asyncio: the same calls, awaited; histories are read with `async for`."""

    def __init__(self, core: SessionCore, run: AsyncDriver) -> None:
        self._core = core
        self._run = run

    async def step(
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
        metadata, tensors = step_metadata(loss, num_examples, worker, hyperparameters), pushed(grads, buffers)
        return await self._run(
            self._core.step(tensors, metadata, pull, if_match, key, out, arriving, send, contribution)
        )

    async def contribute(
        self, grads: Gradients, *, contribution: str, send: WireDtype | None = None, if_match: IfMatch = TRACKED
    ) -> Receipt:
        return await self._run(self._core.contribute(grads, contribution, send, if_match))

    async def push(
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
        metadata = step_metadata(loss, num_examples, worker, hyperparameters)
        return (
            await self._run(self._core.step(pushed(grads, buffers), metadata, "none", if_match, key, None, send=send))
        ).receipt

    async def pull(
        self,
        names: Sequence[str] | None = None,
        dtype: WireDtype | None = None,
        out: Out | None = None,
        *,
        weights: Averaged | None = None,
    ) -> dict[str, Array]:
        return await self._run(self._core.pull(names, dtype, out, weights))

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

    async def put_state(self, state: StateDict, *, if_match: IfMatch = None, strict: bool = True) -> list[str]:
        return await self._run(self._core.put_state(state, if_match, strict))

    async def change_optimizer(
        self, name: str, *, carry: Mapping[str, str] | None = None, if_match: IfMatch = TRACKED, **hyperparameters: Any
    ) -> ExchangeReport:
        wanted = {"name": name, "carry": carry or {}, **hyperparameters}
        return await self._run(self._core.change_optimizer(wanted, if_match))

    async def update(
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
        others = {"optimizer": optimizer, "groups": groups, "name": name, "nonfinite": nonfinite, "wire": wire}
        changes = session_changes(schedule, clip, **others)
        return await self._run(self._core.update(changes))

    async def checkpoint(self, label: str | None = None) -> Checkpoint:
        return await self._run(self._core.checkpoint(label))

    async def checkpoints(self) -> Kept:
        return await self._run(self._core.checkpoints())

    async def remove_checkpoint(self, label: str) -> None:
        await self._run(self._core.remove_checkpoint(label))

    async def rollback(
        self,
        *,
        step: int | None = None,
        etag: str | None = None,
        label: str | None = None,
        if_match: IfMatch = None,
    ) -> RollbackReport:
        return await self._run(self._core.rollback(moment(step, etag, label), if_match))

    async def fork(
        self, *, step: int | None = None, etag: str | None = None, label: str | None = None, **changes: Unpack[Changes]
    ) -> AsyncSession:
        return AsyncSession(await self._run(self._core.fork(moment(step, etag, label) | {**changes})), self._run)

    async def what_if(
        self, grads: Tensors, candidates: Sequence[Mapping[str, Any]], *, send: WireDtype | None = None
    ) -> WhatIfReport:
        return await self._run(self._core.what_if(grads, candidates, send))

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
