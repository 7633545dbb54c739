"""The Redis that holds sessions, a server or a cluster: which of its nodes to ask, and its errors as problems."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from redis import ConnectionPool, Redis, RedisCluster, UnixDomainSocketConnection, exceptions
from redis.backoff import ExponentialBackoff
from redis.cluster import ClusterNode
from redis.connection import PythonRespSerializer
from redis.retry import Retry

from optimd_service.errors import RedisFull, RedisUnavailable

log = logging.getLogger("optimd")

CONNECT_S = 2
SILENCE_S = 10
JOINED_BYTES = 6000  # small arguments are sent in pieces of this
# Tried again at once: a connection that Redis closed while it was idle costs nobody a refusal.
RETRIES, FIRST_WAIT_S, LONGEST_WAIT_S = 3, 0.02, 0.2


class RedisServer:
    """Connections to Redis, made when they are needed.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, with user and password; of a cluster, that of any of its nodes.

    Raises: ValueError, for what is no such URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._first = _pool(url)
        self._others: dict[str, ConnectionPool] = {}
        self._lock = threading.Lock()

    @contextmanager
    def speaking(self, key: str) -> Iterator[Redis]:
        """A client of the node that holds ``key``. Raises, inside too: RedisUnavailable, RedisFull."""
        with self._errors_told():
            yield self._client(self._node_of(key))

    @contextmanager
    def every_node(self) -> Iterator[list[Redis]]:
        """Clients of all nodes that hold keys. Raises, inside too: RedisUnavailable."""
        with self._errors_told():
            nodes = self._cluster.get_primaries() if self._is_cluster else [None]  # type: ignore[no-untyped-call]
            yield [self._client(node) for node in nodes]

    def close(self) -> None:
        """Close all connections."""
        for pool in (self._first, *self._others.values()):
            pool.disconnect()

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except exceptions.OutOfMemoryError as error:
            raise RedisFull(
                "Redis has no room for this (maxmemory); nothing was changed. Give it more memory, or delete sessions: "
                "a step needs room for all that it changes once more."
            ) from error
        except (exceptions.RedisError, OSError) as error:
            self._look_around()
            raise _unavailable(error) from error

    def _look_around(self) -> None:
        """After an error: a cluster may have moved the session, or another node may have taken a dead one's place."""
        with suppress(exceptions.RedisError, OSError):
            if self._is_cluster:
                self._cluster.nodes_manager.initialize()

    def _client(self, node: ClusterNode | None) -> Redis:
        if node is None:
            return Redis(connection_pool=self._first)
        with self._lock:
            if node.name not in self._others:
                arguments = self._first.connection_kwargs | {"host": node.host, "port": node.port}
                self._others[node.name] = ConnectionPool(self._first.connection_class, **arguments)
            return Redis(connection_pool=self._others[node.name])

    def _node_of(self, key: str) -> ClusterNode | None:
        """The node of a cluster that holds a key; None for a server that holds them all."""
        if not self._is_cluster:
            return None
        node: ClusterNode | None = self._cluster.get_node_from_key(key)  # type: ignore[no-untyped-call]
        if node is None:
            raise exceptions.ClusterDownError("CLUSTERDOWN no node has this key's slot")
        return node

    @cached_property
    def _is_cluster(self) -> bool:
        if self._first.connection_class is UnixDomainSocketConnection:
            return False  # the nodes of a cluster are known by their ports
        return bool(Redis(connection_pool=self._first).info("cluster")["cluster_enabled"])

    @cached_property
    def _cluster(self) -> RedisCluster:
        return RedisCluster.from_url(self._url, socket_connect_timeout=CONNECT_S, socket_timeout=SILENCE_S)


def _pool(url: str) -> ConnectionPool:
    return ConnectionPool.from_url(
        url,
        # hiredis' own copies every byte to be sent.
        command_packer=PythonRespSerializer(JOINED_BYTES, _encoded),
        socket_connect_timeout=CONNECT_S,
        socket_timeout=SILENCE_S,
        retry=Retry(ExponentialBackoff(LONGEST_WAIT_S, FIRST_WAIT_S), RETRIES, (exceptions.ConnectionError,)),
    )


def _encoded(argument: Any) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()


def _unavailable(error: Exception) -> RedisUnavailable:
    log.warning("Redis: %s", error)
    return RedisUnavailable(
        f"Redis {_reason(error)}; what it has committed is kept. Try again: a push with its Idempotency-Key steps once."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return "refuses the user or password in OPTIMD_REDIS_URL"
    # The first word of what Redis refuses with is a code, such as MISCONF; anything else may name places.
    code = str(error).partition(" ")[0]
    if isinstance(error, exceptions.ResponseError) and code.isupper() and code.isalpha():
        return f"refuses ({code})"
    return "does not answer"
