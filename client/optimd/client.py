"""A connection to an optimd server: create sessions, find them, read the catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from optimd._description import Description, describe, takes
from optimd._drive import AsyncDriver, Driver
from optimd._httpx import AsyncHttpxTransport
from optimd._retry import Retry
from optimd._service import ServiceCore
from optimd._settings import Settings
from optimd._transport import transport_for
from optimd.async_session import AsyncSession
from optimd.models import Advice, CostInfo, ModelKind, OptimizerInfo, SessionInfo, SessionStatus, TaskFields
from optimd.session import Session


class Client:
    """A connection to one server; usable from several threads, and as a context manager.

    Args:
      url: of the server, `http://host:port` or `unix:/path/of/its/socket`; else `OPTIMD_URL`, else
        http://127.0.0.1:8000.
      api_key: else `OPTIMD_API_KEY`, else none.
      timeout: seconds of silence borne for a request without a body; each 10 MiB sent adds one. Else
        `OPTIMD_TIMEOUT`, else 30.
      retries: attempts after the first, with exponential backoff. Else `OPTIMD_RETRIES`, else 5.
      connections: over how many of them a large body travels, 1 or 2. Else `OPTIMD_CONNECTIONS`, else 2.
      transport: any httpx transport, to talk through instead of the one made for tensors: for tests, custom TLS.

    Raises: InvalidSetting.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        connections: int | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = Settings.resolve(url, api_key, timeout, retries, connections=connections)
        self.url = settings.url
        self._transport = transport_for(settings, transport)
        self._core = ServiceCore(Retry(settings.retries), cuts_bodies=self._transport.cuts_bodies)
        self._run = Driver(self._transport)

    @takes(describe)
    def create_session(self, description: Description) -> Session:
        """Create a session from tensors to be initialised by the server, or from weights.

        Args: those of `optimd._description.describe`, which explains each. A hyperparameter is a keyword argument or,
          whatever its name, a member of ``optimizer``.

        Raises: InvalidHyperparameter, InvalidField, OptimizerNotFound, InsufficientMemory. It is sent again only
          when nothing was sent at all, so that a lost reply cannot leave two sessions.
        """
        return Session(self._run(self._core.create_session(description)), self._run)

    @takes(describe)
    def cost(self, description: Description) -> CostInfo:
        """What a session of this description would hold in memory; nothing is created, and no weights are sent.

        Args: those of `create_session`.

        Raises: InvalidHyperparameter, InvalidField.
        """
        return self._run(self._core.cost(description))

    def session(self, session_id: str) -> Session:
        """The session of that id. Raises: SessionNotFound."""
        return Session(self._run(self._core.session(session_id)), self._run)

    def sessions(self, status: SessionStatus = "live", limit: int | None = None) -> Iterator[SessionInfo]:
        """The server's sessions, oldest first, fetched page by page."""
        return self._run.rows(partial(self._core.sessions, status), "", limit)

    def optimizers(self) -> list[OptimizerInfo]:
        """The catalogue."""
        return self._run(self._core.optimizers())

    def optimizer(self, name: str) -> OptimizerInfo:
        """One optimizer of the catalogue. Raises: OptimizerNotFound."""
        return self._run(self._core.optimizer(name))

    def advice(self, model: ModelKind, parameters: int, **task: Unpack[TaskFields]) -> Advice:
        """Which optimizer to take for a task, with which settings, and why.

        Args:
          model: its kind.   parameters: how many of them are trained.
          task: what else is known, such as `batch_size=256, steps=10_000, symptoms=["diverges"]`; each makes the
            advice more exact.

        Raises: InvalidField.
        """
        return self._run(self._core.advice(model, parameters, task))

    def health(self) -> dict[str, Any]:
        """What `/readyz` says, asked once. Raises: ProblemError when the server is not ready."""
        return self._run(self._core.health())

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited; sessions are listed with `async for`.

    A body travels over one connection, whatever ``connections`` says.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        connections: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = Settings.resolve(url, api_key, timeout, retries, connections=connections)
        self.url = settings.url
        self._core = ServiceCore(Retry(settings.retries))
        self._transport = AsyncHttpxTransport(settings, transport)
        self._run = AsyncDriver(self._transport)

    @takes(describe)
    async def create_session(self, description: Description) -> AsyncSession:
        return AsyncSession(await self._run(self._core.create_session(description)), self._run)

    @takes(describe)
    async def cost(self, description: Description) -> CostInfo:
        return await self._run(self._core.cost(description))

    async def session(self, session_id: str) -> AsyncSession:
        return AsyncSession(await self._run(self._core.session(session_id)), self._run)

    def sessions(self, status: SessionStatus = "live", limit: int | None = None) -> AsyncIterator[SessionInfo]:
        return self._run.rows(partial(self._core.sessions, status), "", limit)

    async def optimizers(self) -> list[OptimizerInfo]:
        return await self._run(self._core.optimizers())

    async def optimizer(self, name: str) -> OptimizerInfo:
        return await self._run(self._core.optimizer(name))

    async def advice(self, model: ModelKind, parameters: int, **task: Unpack[TaskFields]) -> Advice:
        return await self._run(self._core.advice(model, parameters, task))

    async def health(self) -> dict[str, Any]:
        return await self._run(self._core.health())

    async def close(self) -> None:
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
