"""Writing to a session's buffers: completely, or the session says that it is damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from optimd_service.errors import Problem, StaleReplica, StateDamaged
from optimd_service.store.contract import StoredState, Working
from optimd_service.types import Buffers

log = logging.getLogger("optimd")


@contextmanager
def writing(state: StoredState, buffers: Buffers, session: str) -> Iterator[Working]:
    """Hand out a session's buffers, to be written and committed inside.

    Whatever is to be refused is refused before: after an error in here nobody knows what was written.

    Args:
      buffers: those that are needed.   session: id, for the log.

    Raises: InsufficientMemory, with nothing changed; StateDamaged for any error inside.
    """
    working = state.begin(buffers)
    try:
        yield working
    except Exception as error:
        state.abandon(working, written=True)
        if isinstance(error, StaleReplica):
            pass  # as often as servers step at once
        elif isinstance(error, Problem):
            log.warning("session %s: an update was not committed: %s", session, error.detail)
        else:
            log.exception("session %s: an update failed half-way", session)
        raise StateDamaged("The update failed half-way; create a new session from your last pull.") from error
