"""Work that does not belong on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Elsewhere(Protocol):
    """Runs a function away from the event loop."""

    async def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``function(*args, **kwargs)``."""


class Transfers(Protocol):
    """Threads that may wait for a socket."""

    @property
    def idle(self) -> bool:
        """Whether one is free now."""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``function(*args, **kwargs)`` in one of them."""
