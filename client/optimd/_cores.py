"""A thread that works beside another, kept off the core on which that one computes.

A kernel wakes a thread where it slept, or where its waker runs, and moves it to a free core some milliseconds later; on
machines whose cores it takes to share no cache, such as many virtual ones, it does so with a free core beside it. In
that time a part of a push could have gone, and whoever shares the core with it has lost as much.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_getcpu: Callable[[], int] = getattr(ctypes.CDLL(None), "sched_getcpu", lambda: -1)
_bind: Callable[[int, Any], None] | None = getattr(os, "sched_setaffinity", None)


class Beside:
    """Moves one thread out of the way of those that call `give_way`.

    Args:
      thread: the kernel's number for it; None where it has none.
    """

    def __init__(self, thread: int | None) -> None:
        self._thread = thread
        self._left = -1

    def give_way(self) -> None:
        """Let the thread leave the core on which the caller runs, if the caller might run on another too."""
        core = _getcpu()
        if core == self._left or _bind is None or self._thread is None:
            return
        others = os.sched_getaffinity(0) - {core}
        if others:
            self._left = core
            with suppress(OSError):  # where it is not allowed, or the thread has ended
                _bind(self._thread, others)


@contextmanager
def staying() -> Iterator[None]:
    """Keep the calling thread on the core on which it runs."""
    allowed, core = os.sched_getaffinity(0) if _bind is not None else set[int](), _getcpu()
    if _bind is None or core not in allowed:
        yield
        return
    _bind(0, {core})
    try:
        yield
    finally:
        _bind(0, allowed)
