"""Those who wait until a session moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


class Waiters:
    """Woken at every change, until nobody may wait any more."""

    def __init__(self) -> None:
        self._moved = asyncio.Event()
        self._may_wait = True

    async def until(self, has_moved: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until ``has_moved``; False when it has not within ``timeout_s``, or nobody may wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._may_wait and not has_moved():
                    await self._moved.wait()
        return has_moved()

    def wake(self) -> None:
        """Let everybody look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    def send_home(self) -> None:
        """Let everybody go, and nobody wait from now on."""
        self._may_wait = False
        self.wake()
