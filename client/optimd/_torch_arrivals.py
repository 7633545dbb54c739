"""Weights on their way: one thread receives them, and another waits for those that it needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition

from optimd._torch_weights import LocalWeights
from optimd.models import Receipt


class Arrivals:
    """The reply to one push. The first three methods are the receiving thread's, the others the waiting one's.

    Args:
      weights: where they arrive.

    Attributes:
      judged: whether the push has been found good, so that weights will come.
    """

    def __init__(self, weights: LocalWeights) -> None:
        self.judged = False
        self._weights = weights
        self._pid = os.getpid()
        self._news = Condition()
        self._there: set[str] = set()
        self._exchange: Future[Receipt] | None = None

    def began(self) -> None:
        with self._news:
            self.judged = True
            self._news.notify_all()

    def arrived(self, name: str) -> None:
        self._weights.land(name)
        with self._news:
            self._there.add(name)
            self._news.notify_all()

    def end(self, exchange: Future[Receipt]) -> None:
        """Nothing more will come."""
        with self._news:
            self._exchange = exchange
            self._news.notify_all()

    def wait_for_judgement(self) -> None:
        """Wait until it is known whether there will be weights. Raises: why there will be none."""
        self._wait(lambda: self.judged)
        if not self.judged:
            self._result()

    def wait(self, name: str) -> bool:
        """Wait for one tensor.

        Returns: whether it was not there yet.

        Raises: RuntimeError in a process that was forked meanwhile, and why it did not come.
        """
        if name in self._there:
            return False
        self._wait(lambda: name in self._there)
        if name not in self._there:
            self._result()
        return True

    def wait_for_all(self) -> Receipt:
        """Wait for the end. Raises: as `wait`."""
        self._wait(lambda: False)
        return self._result()

    def _wait(self, done: Callable[[], bool]) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                "this process was forked while new weights were on their way to the process that asked for them: call "
                "opt.wait() before forking"
            )
        with self._news:
            self._news.wait_for(lambda: self._exchange is not None or done())

    def _result(self) -> Receipt:
        assert self._exchange is not None  # noqa: S101 - it is not asked for before the end
        return self._exchange.result()
