"""Those who wait until a session moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Waiters:
    """Woken at every change, until nobody may wait any more.

    Attributes:
      may_wait: false at the server's end.
    """

    def __init__(self) -> None:
        self._moved = asyncio.Event()
        self._waiting = 0
        self.may_wait = True

    async def until(self, has_moved: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``has_moved``; False when it has not within ``timeout_s``, or nobody may wait."""
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while self.may_wait and not has_moved():
                        await self._moved.wait()
        finally:
            self._waiting -= 1
        return has_moved()

    def wake(self) -> None:
        """Let everybody look again."""
        if self._waiting:
            self._moved.set()
            self._moved = asyncio.Event()

    def send_home(self) -> None:
        """Let everybody go, and nobody wait from now on."""
        self.may_wait = False
        self.wake()
