"""One push at a time: a session has one gradient buffer, and steps follow one another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from optimd_service.errors import StepInFlight
from optimd_service.session.contribution import Contribution
from optimd_service.session.incoming import Incoming
from optimd_service.session.preconditions import Precondition
from optimd_service.types import Version


class Turns:
    """Gives turns in the order asked.

    Two locks, because an upload can take long and an update cannot: ``taking`` is held while a push arrives and is
    applied, ``writing`` only while buffers are written. A pull waits for the second alone.

    A push in parts takes a turn for each. What has come of it lies in the gradient buffer in between, until somebody
    else takes a turn to write there.

    Args:
      version: what the session stands at now.
      known: whether a key was committed; its retry is answered, however stale its ``If-Match`` has become.
      incoming: what is to judge a push in parts, if anything is.
    """

    def __init__(
        self,
        *,
        version: Callable[[], Version],
        known: Callable[[str], bool],
        incoming: Callable[[], Incoming | None] = lambda: None,
    ) -> None:
        self.taking = asyncio.Lock()
        self.writing = asyncio.Lock()
        self._version = version
        self._known = known
        self._incoming = incoming
        self._in_flight: set[str] = set()
        self._contribution: Contribution | None = None

    @asynccontextmanager
    async def push(self, precondition: Precondition, *, whole: bool = True) -> AsyncIterator[None]:
        """Hold the session for one push.

        Args:
          whole: it needs nothing of what has come before.

        Raises: PreconditionRequired, StepInFlight, StaleStep; before the body is read, and again after waiting.
        """
        key = precondition.key
        precondition.require_one(self._version())
        if key in self._in_flight:
            raise StepInFlight("A push with this Idempotency-Key is on its way; ask again in a second.")
        self.check(precondition)
        if key is not None:
            self._in_flight.add(key)
        try:
            async with self.taking:
                self.check(precondition)
                if whole:
                    self.forget()
                yield
        finally:
            if key is not None:
                self._in_flight.discard(key)

    def check(self, precondition: Precondition) -> None:
        """Refuse a push that builds on another version, unless it is a committed one's retry. Raises: StaleStep."""
        key = precondition.key
        if precondition.match and not (key is not None and self._known(key)):
            precondition.match.check(self._version())

    def contribution(self, contribution_id: str) -> Contribution:
        """What has come of a push in parts, inside a turn for one of them; any other is forgotten."""
        found, version = self._contribution, self._version()
        if found is None or (found.id, found.version) != (contribution_id, version):
            found = self._contribution = Contribution(contribution_id, version, self._incoming())
        return found

    def forget(self) -> None:
        """What has come in parts is no longer there, or has been stepped with."""
        self._contribution = None
