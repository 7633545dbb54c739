from __future__ import annotations

from collections.abc import Iterator

import pytest
from replica import Pair, replica

from redis_server import DURABLE, RedisServer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Shared by tests that leave all three running."""
    at = tmp_path_factory.mktemp("replicas")
    with (
        RedisServer(**DURABLE) as redis,
        replica(at, "here", redis.url) as here,
        replica(at, "there", redis.url) as there,
    ):
        yield Pair(here, there, redis)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One of the test's own, that keeps what it acknowledges."""
    with RedisServer(**DURABLE) as server:
        yield server
