"""One session's state in Redis, and this process's warm copy of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace

import torch
from redis import Redis

from optimd_service.errors import Problem, RedisFull, SessionLost, SessionNotFound, StaleReplica
from optimd_service.store.contract import Entry, Record, Remembered, Working
from optimd_service.store.device import REMEMBERED_KEYS, DeviceSnapshot, DeviceState
from optimd_service.store.failpoints import failpoint
from optimd_service.store.redis.chunks import cut, load_
from optimd_service.store.redis.committed import Caught, Committed, record_text, remembered_text
from optimd_service.store.redis.head import PARAMS, Head, Stored, name_of
from optimd_service.store.redis.keys import Keys
from optimd_service.store.redis.scripts import COMMIT, COMMITTED, DISCARD, GONE, INCOMPLETE, READ
from optimd_service.store.redis.server import RedisServer
from optimd_service.types import Buffers, Layout, Version

# What a writer that died has left expires by itself; no commit takes as long.
UNCOMMITTED_S = 600
READINGS = 5  # of a session that moves on meanwhile


class RedisState:
    """A session that any process may write, one commit at a time.

    Committed is what Redis holds. The copy in memory is written in place, as a session's of this process alone would
    be; a commit that Redis does not take leaves it damaged, until ``catch_up`` has put it right.

    Args:
      memory: the copy; as new.
    """

    records = True

    def __init__(self, memory: DeviceState, server: RedisServer, keys: Keys) -> None:
        self.layout: Layout = memory.layout
        self.grads: torch.Tensor = memory.grads
        self._memory = memory
        self._server = server
        self._keys = keys
        self._head = Head()

    @property
    def version(self) -> Version:
        return self._memory.version

    @property
    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        return self._memory.numbers

    @property
    def held_bytes(self) -> int:
        return self._memory.held_bytes

    @property
    def durable_step(self) -> int:
        return self.version.step

    def durable_with(self, step: int) -> int:
        return step

    def enter(self, nbytes: int) -> Entry | None:  # noqa: ARG002  the contract's
        return None

    def snapshot(self) -> DeviceSnapshot:
        return self._memory.snapshot()

    def recall(self, key: str) -> Remembered | None:
        return self._memory.recall(key)

    def read_state(self) -> Working:
        return self._memory.read_state()

    def begin(self, buffers: Buffers) -> Working:
        return self._memory.begin(buffers)

    def abandon(self, working: Working, *, written: bool) -> None:
        self._memory.abandon(working, written=written)

    def commit(
        self,
        working: Working,
        version: Version,
        remember: Mapping[str, Remembered],
        record: Record | None = None,
    ) -> None:
        head, written = self._cut(working, version)
        outcome, step = self._commit(head, written, remember, record)
        if outcome != COMMITTED:
            raise self._refusal(outcome, step)
        self._head = head
        self._memory.commit(working, version, remember)

    def _cut(self, working: Working, version: Version) -> tuple[Head, dict[str, memoryview]]:
        """The next head, and the chunks to be written by their keys."""
        head = Head(self._head.seq + 1, secrets.token_hex(8), version, updates=working.updates)
        stored: dict[str, Stored] = {}
        written: dict[str, memoryview] = {}
        for name, flat in _named(working).items():
            stored[name], new = cut(flat, self._head.stored.get(name), head.commit)
            written.update({self._keys.chunk(name, number, head.commit): piece for number, piece in new.items()})
        numbers = {owner: dict(held) for owner, held in working.numbers.items()}
        return replace(head, stored=stored, started=frozenset(working.started), numbers=numbers), written

    def _commit(
        self, head: Head, written: Mapping[str, memoryview], remember: Mapping[str, Remembered], record: Record | None
    ) -> tuple[bytes, int]:
        """Write beside what is committed, and turn from one to the other, in one message.

        All of it may be sent twice: a connection can break behind a commit.

        Returns: how it ended, and the step that is committed then.
        """
        before = self._head
        given_up = set(before.chunk_keys(self._keys)) - set(head.chunk_keys(self._keys))
        keys = [*self._keys.values, *written, *given_up]
        standing = "" if record is None or record.standing is None else json.dumps(record.standing)
        values: list[str | int] = [
            before.commit,
            head.commit,
            head.seq,
            head.version.step,
            len(written),
            head.to_json(),
        ]
        values += [standing, remembered_text(remember), record_text(head.commit, record), REMEMBERED_KEYS]
        with self._server.speaking(self._keys.head) as client:
            pipeline = client.pipeline(transaction=False)
            for key, piece in written.items():
                # NX: of a commit that was taken at the first attempt, nothing may begin to expire.
                pipeline.set(key, piece, ex=UNCOMMITTED_S, nx=True)
            pipeline.eval(COMMIT, len(keys), *keys, *values)
            failpoint("redis.before_commit")
            replies = pipeline.execute(raise_on_error=False)
            failpoint("redis.after_commit")
            failed = [reply for reply in replies if isinstance(reply, Exception)]
            if written and (failed or replies[-1][0] != COMMITTED):
                client.eval(DISCARD, len(written), *written)
            if failed:
                raise failed[0]
            return replies[-1][0], replies[-1][1]

    def _refusal(self, outcome: bytes, step: int) -> Problem:
        if outcome == GONE:
            return self._gone()
        if outcome == INCOMPLETE:
            return RedisFull(
                "Redis has dropped what was being written to it, and nothing was changed. Give it more memory, and "
                "set its maxmemory-policy to noeviction."
            )
        return _stale(self.version.step, step)

    def open(self) -> Caught:
        """Read all of the session for the first time. Raises: as ``catch_up``."""
        with self._server.speaking(self._keys.head) as client:
            return self._catch_up(client)

    def catch_up(self) -> Caught | None:
        """Bring the copy up to what is committed.

        Returns: what others have committed; None if it is what this process knows.

        Raises: RedisUnavailable; SessionNotFound, when it has been deleted; SessionLost, when Redis has lost it, or
        commits of it; InsufficientMemory; StaleReplica, when it moved on faster than it could be read.
        """
        with self._server.speaking(self._keys.head) as client:
            commit = client.hget(self._keys.head, "commit") or b""
            if commit == self._head.commit.encode() and not self._memory.damaged:
                return None
            return self._catch_up(client)

    def _catch_up(self, client: Redis) -> Caught:
        before = self._head.seq
        for _ in range(READINGS):
            committed = self._read(client)
            if self._load(client, committed):
                return committed.since(before)
            self._require_moved(committed, self._read(client))
        raise _stale(self.version.step, committed.head.version.step)

    def _read(self, client: Redis) -> Committed:
        """What is committed. Raises: SessionNotFound, SessionLost."""
        found = client.eval(READ, len(self._keys.values), *self._keys.values, self._head.seq, REMEMBERED_KEYS)
        if len(found) == 1:
            raise self._gone(deleted=bool(found[0]))
        committed = Committed.of(found)
        if committed.own_commit not in {None, self._head.commit} or committed.head.seq < self._head.seq:
            raise SessionLost(
                f"Redis has lost steps of this session that were acknowledged: here it stands at step "
                f"{self.version.step}, in Redis at another step {committed.head.version.step}. Bring back what Redis "
                "has kept on disk, or restart this server to go on from where Redis stands.",
                step=self.version.step,
                found_step=committed.head.version.step,
            )
        return committed

    def _load(self, client: Redis, committed: Committed) -> bool:
        """Make the copy what is committed; False if it was not all there."""
        head = committed.head
        working = self._memory.renew(head.buffers)
        flats = _named(working)
        try:
            whole = all(load_(client, self._keys, name, head.stored[name], flat) for name, flat in flats.items())
        except BaseException:
            self._memory.abandon(working, written=True)
            raise
        if not whole:
            self._memory.abandon(working, written=True)
            return False
        working.updates, working.started = head.updates, set(head.started)
        working.numbers = {owner: dict(held) for owner, held in head.numbers.items()}
        self._memory.commit(working, head.version, committed.remembered)
        self._head = head
        return True

    def _require_moved(self, committed: Committed, now: Committed) -> None:
        """Chunks go when others take their place, and only then. Raises: SessionLost."""
        if now.head.commit == committed.head.commit:
            raise SessionLost(
                f"Redis has lost part of this session's state, of step {now.head.version.step}. Does it evict keys? "
                "Bring back what it has kept on disk, or create a new session from your last pull.",
                step=self.version.step,
                found_step=now.head.version.step,
            )

    def _gone(self, *, deleted: bool | None = None) -> SessionLost | SessionNotFound:
        if deleted is None:
            with self._server.speaking(self._keys.head) as client:
                deleted = bool(client.exists(self._keys.deleted))
        if deleted:
            return SessionNotFound("This session has been deleted.")
        stood = {"step": self.version.step} if self._head.seq else {}
        known = f", which stood at step {self.version.step} here" if stood else ""
        return SessionLost(
            f"Redis has lost this session{known}. Bring back what Redis has kept on disk, or create a new session from "
            "your last pull.",
            **stood,
        )


def _named(working: Working) -> dict[str, torch.Tensor]:
    return {PARAMS: working.params, **{name_of(buffer): flat for buffer, flat in working.state.items()}}


def _stale(base_step: int, step: int) -> StaleReplica:
    return StaleReplica(
        f"Another server has changed this session meanwhile: it stands at step {step}, and this server went from step "
        f"{base_step}. Nothing was changed here; send the same request again.",
        base_step=base_step,
        step=step,
    )
