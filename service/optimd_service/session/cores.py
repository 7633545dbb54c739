"""Threads that share one piece of work, kept on different cores while they do.

A kernel wakes a thread where it slept, or where its waker runs, and moves it to a free core some milliseconds later; on
machines whose cores it takes to share no cache, such as many virtual ones, it does so with a free core beside it. An
update of 25 million parameters is over by then.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_getcpu: Callable[[], int] = getattr(ctypes.CDLL(None), "sched_getcpu", lambda: -1)
_bind: Callable[[int, Any], None] | None = getattr(os, "sched_setaffinity", None)


def current() -> int:
    """The core on which the calling thread runs now; −1 where that cannot be known."""
    return _getcpu()


@contextmanager
def staying_on(core: int) -> Iterator[None]:
    """Keep the calling thread on this core."""
    with _bound(lambda allowed: allowed & {core}):
        yield


@contextmanager
def away_from(core: int) -> Iterator[None]:
    """Keep the calling thread off this core, if there is another."""
    with _bound(lambda allowed: allowed - {core}):
        yield


@contextmanager
def led() -> Iterator[Callable[[int], None]]:
    """Let the calling thread be moved about. Yields: what moves it to a core, as far as it may run there."""
    if _bind is None:
        yield lambda _: None
        return
    bind, allowed, now = _bind, os.sched_getaffinity(0), -1

    def lead(core: int) -> None:
        nonlocal now
        if core != now and core in allowed:
            now = core
            bind(0, {core})

    try:
        yield lead
    finally:
        bind(0, allowed)


@contextmanager
def _bound(choice: Callable[[set[int]], set[int]]) -> Iterator[None]:
    allowed = os.sched_getaffinity(0) if _bind is not None else set[int]()
    chosen = choice(allowed)
    if _bind is None or not chosen or chosen == allowed:
        yield
        return
    _bind(0, chosen)
    try:
        yield
    finally:
        _bind(0, allowed)
