"""Sessions in Redis, each with a warm copy in this process once it is used here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optimd_service.errors import InvalidField, SessionNotFound
from optimd_service.store.device import DeviceStore
from optimd_service.store.redis.committed import Caught
from optimd_service.store.redis.head import Head
from optimd_service.store.redis.keys import SESSIONS, Keys
from optimd_service.store.redis.readiness import RedisReadiness
from optimd_service.store.redis.scripts import DELETE
from optimd_service.store.redis.server import RedisServer
from optimd_service.store.redis.state import RedisState
from optimd_service.types import Buffers, BufferSize, Durability, Layout

DELETED_TOLD_S = 7 * 24 * 3600
"""For how long other processes can tell a deleted session from one that Redis has lost."""


class RedisStore:
    """Creates, finds and deletes sessions in Redis.

    Args:
      memory: in which the copies lie, within its budget.
      require_durable: whether to take none into a Redis that may lose what it has acknowledged.

    Attributes:
      readiness: tells whether it may.
    """

    def __init__(self, server: RedisServer, memory: DeviceStore, *, require_durable: bool = False) -> None:
        self.readiness = RedisReadiness(server, require_durable)
        self._server = server
        self._memory = memory
        self._states: dict[str, RedisState] = {}

    def create(
        self,
        session_id: str,
        layout: Layout,
        buffers: Buffers,
        grads: BufferSize,
        device: str = "cpu",
        durability: Durability = "step",
    ) -> RedisState:
        """As the contract has it; the session is in Redis from its first commit on.

        Raises: InvalidField, for a device or a durability that Redis does not have; RedisUnavailable, RedisNotDurable.
        """
        _require(device, durability)
        self.readiness.require()
        state = self._copied(session_id, layout, buffers, grads)
        try:
            with self._server.speaking(SESSIONS) as client:
                client.sadd(SESSIONS, session_id)
        except BaseException:
            self.forget(session_id)
            raise
        return state

    def open(self, session_id: str, layout: Layout, grads: BufferSize) -> tuple[RedisState, Caught]:
        """Take a copy of a session that is in Redis: as committed last, and all that is kept of how it came there.

        Raises: SessionNotFound, SessionLost, StaleReplica, RedisUnavailable, InsufficientMemory.
        """
        state = self._copied(session_id, layout, {}, grads)
        try:
            return state, state.open()
        except BaseException:
            self.forget(session_id)
            raise

    def _copied(self, session_id: str, layout: Layout, buffers: Buffers, grads: BufferSize) -> RedisState:
        memory = self._memory.create(session_id, layout, buffers, grads)
        state = self._states[session_id] = RedisState(memory, self._server, Keys.of(session_id))
        return state

    def ids(self) -> list[str]:
        """Of all sessions in Redis, the oldest first; one that is being created or deleted may be among them."""
        with self._server.speaking(SESSIONS) as client:
            return sorted(m if isinstance(m, str) else m.decode() for m in client.smembers(SESSIONS))

    def standing(self, session_id: str) -> Mapping[str, Any] | None:
        """A session's standing as committed last; None if Redis knows of none. Raises: SessionNotFound, if deleted."""
        keys = Keys.of(session_id)
        with self._server.speaking(keys.head) as client:
            text = client.hget(keys.head, "standing")
            if not text and client.exists(keys.deleted):
                raise SessionNotFound("This session has been deleted.")
        return json.loads(text) if text else None

    def forget(self, session_id: str) -> None:
        """Give up the copy of a session, and nothing else."""
        self._states.pop(session_id, None)
        self._memory.drop(session_id)

    def drop(self, session_id: str) -> None:
        """Forget a session, and delete it for everybody. Raises: RedisUnavailable, and it is only forgotten then."""
        try:
            self.delete(session_id)
        finally:
            self.forget(session_id)

    def delete(self, session_id: str) -> bool:
        """Delete a session for everybody; the copy here stays. False if there was none. Raises: RedisUnavailable."""
        keys = Keys.of(session_id)
        with self._server.speaking(keys.head) as client:
            deleted = False
            while not deleted:
                body = client.hget(keys.head, "body")
                head = Head() if body is None else Head.from_json(body)
                all_keys = [*keys.values, *head.chunk_keys(keys)]
                deleted = bool(client.eval(DELETE, len(all_keys), *all_keys, head.commit, DELETED_TOLD_S))
        with self._server.speaking(SESSIONS) as client:
            client.srem(SESSIONS, session_id)
        return bool(head.seq)

    def close(self) -> None:
        """Nothing more is asked of Redis."""
        self._server.close()


def _require(device: str, durability: Durability) -> None:
    if device != "cpu":
        raise InvalidField(
            f"A session in Redis is computed by whichever server is asked, in its host's memory: leave {device} out, "
            "or create the session with storage.backend device.",
            field="storage.device",
        )
    if durability != "step":
        raise InvalidField(
            "A session in Redis is kept there step by step: leave `durability` out, or create the session with "
            "storage.backend device.",
            field="durability",
        )
