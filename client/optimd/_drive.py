"""Carrying out operations, with blocking calls or with awaits; all that differs between the two clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

from optimd._documents import Page
from optimd._exchange import Operation, Reply, Request, Sleep
from optimd.errors import OptimdError

T = TypeVar("T")
Fetch = Callable[[Any, int | None], Operation[Page[T]]]
"""Takes where to start and how many rows are still wanted."""


class Transport(Protocol):
    """The seam to the network: one exchange is one attempt, its failures already OptimdErrors.

    Attributes:
      cuts_bodies: whether it carries a body in two halves at once where the request says where.
    """

    @property
    def cuts_bodies(self) -> bool: ...
    def exchange(self, request: Request) -> Reply: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same seam for asyncio."""

    def exchange(self, request: Request) -> Awaitable[Reply]: ...
    def aclose(self) -> Awaitable[None]: ...


class Driver:
    """Runs operations over a transport, blocking."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def __call__(self, operation: Operation[T]) -> T:
        try:
            effect = next(operation)
            while True:
                try:
                    answer = self._perform(effect)
                except OptimdError as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def rows(self, fetch: Fetch[T], after: Any, limit: int | None = None) -> Iterator[T]:
        """Every row of a list, page by page, at most ``limit``."""
        while after is not None and limit != 0:
            page = self(fetch(after, limit))
            yield from page.rows[:limit]
            after, limit = page.next, limit and limit - len(page.rows[:limit])

    def _perform(self, effect: Request | Sleep) -> Reply | None:
        if isinstance(effect, Request):
            return self.transport.exchange(effect)
        time.sleep(effect.seconds)
        return None


class AsyncDriver:
    """Runs operations over a transport, awaiting."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport

    async def __call__(self, operation: Operation[T]) -> T:
        try:
            effect = next(operation)
            while True:
                try:
                    answer = await self._perform(effect)
                except OptimdError as error:
                    effect = operation.throw(error)
                else:
                    effect = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def rows(self, fetch: Fetch[T], after: Any, limit: int | None = None) -> AsyncIterator[T]:
        """Every row of a list, page by page, at most ``limit``."""
        while after is not None and limit != 0:
            page = await self(fetch(after, limit))
            for row in page.rows[:limit]:
                yield row
            after, limit = page.next, limit and limit - len(page.rows[:limit])

    async def _perform(self, effect: Request | Sleep) -> Reply | None:
        if isinstance(effect, Request):
            return await self.transport.exchange(effect)
        await asyncio.sleep(effect.seconds)
        return None
