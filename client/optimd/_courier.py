"""A thread of one's own for what goes over the wire while the program computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, TypeVar
from weakref import finalize

from optimd._cores import Beside

T = TypeVar("T")
Errand: TypeAlias = tuple["Future[Any]", Callable[[], Any]]
Errands: TypeAlias = "SimpleQueue[Errand | None]"


class Courier:
    """Runs errands one after the other in a background thread.

    The thread starts with the first errand, and ends with `close` or with the last reference to this; it does not keep
    the program from ending. A forked child, which inherits no threads, starts one of its own.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._errands: Errands = SimpleQueue()
        self._thread = Beside(None)

    def send(self, errand: Callable[[], T]) -> Future[T]:
        """Put an errand at the end of the queue; one that has not begun can be cancelled."""
        if self._pid != os.getpid():
            self._start()
        future: Future[T] = Future()
        self.give_way()
        self._errands.put((future, errand))
        return future

    def give_way(self) -> None:
        """Let the thread go on elsewhere than on the core on which the caller computes."""
        self._thread.give_way()

    def close(self) -> None:
        """Let the thread end behind the errands that are there; another errand starts another thread."""
        self._errands.put(None)
        self._pid, self._thread = 0, Beside(None)

    def _start(self) -> None:
        self._pid, self._errands = os.getpid(), SimpleQueue()
        thread = Thread(target=_run, args=(self._errands,), name="optimd", daemon=True)
        thread.start()
        self._thread = Beside(thread.native_id)
        finalize(self, self._errands.put, None).atexit = False


def _run(errands: Errands) -> None:
    while (errand := errands.get()) is not None:
        _do(*errand)
        del errand  # what it holds, such as gradients, must not live until the next one


def _do(future: Future[Any], errand: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = errand()
    except BaseException as error:  # noqa: BLE001 - whoever asks for the result raises it
        future.set_exception(error)
    else:
        future.set_result(result)
