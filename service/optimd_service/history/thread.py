"""A thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines away from the caller's event loop; the caller awaits them as if they were its own."""

    def __init__(self, name: str) -> None:
        # Daemonic, so that a server that dies without stopping still exits.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=name, daemon=True)
        self._serving = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._serving.wait()

    async def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await ``function()`` on the thread's loop; cancelling here cancels there.

        Raises: RuntimeError when the thread is not running.
        """
        if not self._serving.is_set():
            raise RuntimeError(f"{self._thread.name} is not running")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(), self._loop))

    async def stop(self) -> None:
        """End the thread; what still runs on it is cancelled."""
        self._serving.clear()
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._serving.set()
        await self._stopping.wait()
