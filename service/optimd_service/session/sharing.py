"""A session that other servers serve too: what they have made of it."""

from __future__ import annotations

from dataclasses import replace

from optimd_service.history import History
from optimd_service.session.push import PUSH
from optimd_service.session.replay import receipt_of, row_of
from optimd_service.session.standing import Standing
from optimd_service.store.redis.committed import Caught
from optimd_service.store.redis.state import RedisState

LOOK_EVERY_S = 0.25
"""How often those who wait for a step have another server's looked for."""
STEP_AGAIN = 3
"""How often a push is stepped with again because another server was faster."""


class Sharing:
    """Brings one session up to what others have committed; in a thread."""

    def __init__(self, state: RedisState, history: History) -> None:
        self._state = state
        self._history = history

    def catch_up(self, standing: Standing) -> Standing:
        """How the session stands now; ``standing`` itself, if nobody else has committed.

        Raises: as ``RedisState.catch_up``.
        """
        caught = self._state.catch_up()
        return standing if caught is None else take_in(caught, standing, self._history)


def take_in(caught: Caught, standing: Standing, history: History) -> Standing:
    """How a session stands after what others have committed; the history hears of their steps.

    Args:
      standing: before.
    """
    for record in caught.records:
        row = row_of(record.fields) if record.kind == PUSH else None
        if row is not None:
            history.step(row)
    now = standing if caught.standing is None else Standing.from_json(caught.standing)
    newer = caught.records[len(caught.records) - caught.behind :] if caught.behind else ()
    skipped = sum(r.kind == PUSH and receipt_of(r.fields).outcome == "skipped_nonfinite" for r in newer)
    return replace(now, skipped=now.skipped + skipped) if skipped else now
