from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_server import DURABLE, RedisServer


@pytest.fixture(scope="session")
def _forgetful() -> Iterator[RedisServer]:
    with RedisServer(appendonly="no") as server:
        yield server


@pytest.fixture
def forgetful_redis(_forgetful: RedisServer) -> RedisServer:
    """An empty one that writes nothing to disk."""
    _forgetful.client.flushall()
    return _forgetful


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """An empty one of the test's own, that keeps what it acknowledges."""
    with RedisServer(**DURABLE) as server:
        yield server
