"""Sessions in Redis, which other servers serve too: made here, or found there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from optimd_service.errors import InvalidField
from optimd_service.history import History
from optimd_service.session.arithmetic import Arithmetic, Lane
from optimd_service.session.plan import Plan
from optimd_service.session.rehearsal import rehearse
from optimd_service.session.sharing import Sharing
from optimd_service.session.standing import Standing
from optimd_service.store.contract import Record, StoredState
from optimd_service.store.redis.committed import Caught
from optimd_service.store.redis.state import RedisState
from optimd_service.store.redis.store import RedisStore

BACKEND = "redis"
CREATED = "created"
"""The kind of the record that says what a session is."""
_ID = re.compile(r"[0-9a-f]{20}")


class Found(NamedTuple):
    """A session that is in Redis, taken in here.

    Attributes:
      standing: as it was changed last.   caught: what is kept of the commits that led there.
    """

    standing: Standing
    caught: Caught
    state: RedisState
    lane: Lane


def require_shared(plan: Plan) -> None:
    """Refuse what one server alone can do. Raises: InvalidField."""
    if plan.policy.wire.difference:
        raise InvalidField(
            "What a client holds is known to the server that it was sent by, and a session in Redis is served by any: "
            "leave `difference` out, or create the session with storage.backend device.",
            field="wire.difference",
        )


def publish(state: StoredState, standing: Standing, history: History) -> Sharing | None:
    """Let other servers find a session with its first weights; None of one that is not shared."""
    if not isinstance(state, RedisState):
        return None
    record = Record(CREATED, {"version": state.version}, standing=standing.to_json())
    state.commit(state.begin({}), state.version, {}, record)
    return Sharing(state, history)


def find(session_id: str, store: RedisStore, arithmetic: Arithmetic) -> Found | None:
    """Take in a session as it is committed; None if there is none of this id.

    Raises: SessionNotFound, SessionLost, StaleReplica, RedisUnavailable, InsufficientMemory.
    """
    said = store.standing(session_id) if _ID.fullmatch(session_id) else None
    if said is None:
        return None
    plan = Standing.from_json(said).plan
    rehearse(plan)
    state, caught = store.open(session_id, plan.layout, plan.grads)
    standing = Standing.from_json(caught.standing or said)
    lane = arithmetic.lane(plan.layout.numel, waits=True)
    return Found(standing, replace(caught, standing=None), state, lane)
