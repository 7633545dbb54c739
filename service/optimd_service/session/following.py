"""A step whose new weights are read while it is being taken."""

from __future__ import annotations

import asyncio
import sys
import threading

import torch

from optimd_service.session.stepped import Stepped
from optimd_service.types import Version


class Unfinished(Exception):
    """The update failed half-way: what was read of its weights belongs to no step."""


class Following:
    """How far an update has come, told by the threads that write to the one that reads behind them.

    A push that is refused, skipped or only kept has no new weights, and begins nothing.

    Attributes:
      params: shape [numel], the weights that are being written.   version: what they will be. Both once it has begun.
      begun: set on the event loop when the update begins.
    """

    params: torch.Tensor
    version: Version

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._written = 0
        self._beyond: dict[int, int] = {}
        self._stepped: Stepped | None = None
        self._failed = False

    def begin(self, params: torch.Tensor, version: Version) -> None:
        """From here on nothing can be refused any more."""
        self.params, self.version = params, version
        self._loop.call_soon_threadsafe(self.begun.set)

    def wrote(self, part: torch.Tensor) -> None:
        """A part of the weights is as the step leaves it."""
        start = int(part.storage_offset())
        with self._changed:
            self._beyond[start] = start + len(part)
            while (stop := self._beyond.pop(self._written, None)) is not None:
                self._written = stop
            self._changed.notify()

    def end(self, stepped: Stepped) -> None:
        """The step is committed."""
        with self._changed:
            self._written, self._stepped = sys.maxsize, stepped
            self._changed.notify()

    def fail(self) -> None:
        """There will be no step."""
        with self._changed:
            self._failed = True
            self._changed.notify()

    def ready(self, stop: int) -> None:
        """Wait until the weights can be read up to an element. Raises: Unfinished."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._written >= stop)
            if self._failed:
                raise Unfinished

    def stepped(self) -> Stepped:
        """Wait for the step. Raises: Unfinished."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._stepped is not None)
            if self._stepped is None:
                raise Unfinished
            return self._stepped
