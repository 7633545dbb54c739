"""What a client of a session in Redis is told while Redis is away, full or empty, and what is lost: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from replica import DESCRIPTION, Replica, assert_stands, create, push, receipt, replica

from redis_proxy import RedisProxy
from redis_server import RedisServer


@pytest.fixture
def server(redis: RedisServer, tmp_path: Path) -> Iterator[Replica]:
    with replica(tmp_path, "server", redis.url) as server:
        yield server


def assert_refused(reply: httpx.Response, status: int, slug: str) -> None:
    assert (reply.status_code, reply.json()["type"]) == (status, f"/problems/{slug}"), reply.text


def test_while_redis_is_away_every_call_says_so_and_then_training_goes_on(redis: RedisServer, server: Replica) -> None:
    http, path = server.http, create(server.http)
    push(http, path, 1)
    redis.kill()
    for reply in (
        push(http, path, 2),
        http.get(path),
        http.get(f"{path}/params"),
        http.patch(path, json={"name": "x"}),
        http.delete(path),
        http.post("/v1/sessions", json=DESCRIPTION),
        http.get("/readyz"),
    ):
        assert_refused(reply, 503, "redis-unavailable")
        assert reply.headers["Retry-After"] == "1"
    elsewhere = create(http, storage={"backend": "device"})
    assert receipt(push(http, elsewhere, 1))["step"] == 1
    redis.start()
    assert receipt(push(http, path, 2))["step"] == 2
    assert_stands(http, path, [1, 2])
    assert http.get("/readyz").status_code == 200


def test_a_step_whose_acknowledgement_redis_could_not_give_is_found_by_its_retry(
    redis: RedisServer, tmp_path: Path
) -> None:
    with RedisProxy(redis.folder / "redis.sock") as proxy, replica(tmp_path, "server", proxy.url) as server:
        path = create(server.http)
        proxy.losing, proxy.times = b"committed", 1000
        assert_refused(push(server.http, path, 1), 503, "redis-unavailable")
        proxy.times = 0
        assert receipt(push(server.http, path, 1)) | {"duplicate": False} == receipt(push(server.http, path, 1)) | {
            "duplicate": False
        }
        push(server.http, path, 2)
        assert_stands(server.http, path, [1, 2])


def test_a_redis_without_room_refuses_a_step_and_goes_on_when_there_is_some(
    redis: RedisServer, server: Replica
) -> None:
    http, path = server.http, create(server.http)
    push(http, path, 1)
    redis.client.config_set("maxmemory", 1)
    for _ in range(2):
        assert_refused(push(http, path, 2), 507, "redis-full")
        assert_stands(http, path, [1])
    assert_refused(http.post("/v1/sessions", json=DESCRIPTION), 507, "redis-full")
    redis.client.config_set("maxmemory", 0)
    assert receipt(push(http, path, 2))["step"] == 2
    assert_stands(http, path, [1, 2])


def test_a_redis_that_comes_back_empty_is_refused_for_good(redis: RedisServer, server: Replica) -> None:
    http, path = server.http, create(server.http)
    push(http, path, 1)
    redis.kill()
    redis.forget()
    redis.start()
    for reply in (push(http, path, 2), http.get(f"{path}/params"), push(http, path, 1)):
        assert_refused(reply, 410, "session-lost")
        assert reply.json()["step"] == 1
    assert len(http.get(f"{path}/steps").json()["steps"]) == 1  # the history knows of it
    server.crash()
    server.start_again()
    assert_refused(push(server.http, path, 2), 410, "session-lost")
    assert server.http.delete(path).status_code == 204


def test_a_server_starts_while_redis_is_away_and_serves_when_it_is_back(redis: RedisServer, server: Replica) -> None:
    path = create(server.http)
    push(server.http, path, 1)
    server.crash()
    redis.kill()
    server.start_again()
    assert_refused(push(server.http, path, 2), 503, "redis-unavailable")
    redis.start()
    push(server.http, path, 2)
    assert_stands(server.http, path, [1, 2])


def test_a_redis_that_may_lose_steps_is_named_at_the_start_and_when_asked(tmp_path: Path) -> None:
    with RedisServer(appendonly="no", secret="k3y") as redis, replica(tmp_path, "server", redis.url) as server:  # noqa: S106
        (warning,) = server.http.get("/readyz").json()["redis"]["warnings"]
        assert "keeps nothing on disk" in warning
        assert warning in server.output()
        assert "k3y" not in server.output()
        create(server.http)


def test_a_redis_that_may_lose_steps_is_refused_where_that_is_said(tmp_path: Path) -> None:
    settings = {"REDIS_REQUIRE_DURABLE": "true"}
    with RedisServer(appendonly="no") as redis, replica(tmp_path, "server", redis.url, **settings) as server:
        for reply in (server.http.post("/v1/sessions", json=DESCRIPTION), server.http.get("/readyz")):
            assert_refused(reply, 503, "redis-not-durable")
            assert reply.json()["warnings"]
        redis.client.config_set("appendonly", "yes")
        redis.client.config_set("appendfsync", "always")
        assert server.http.get("/readyz").json()["redis"] == {"warnings": []}
        create(server.http)


def test_a_server_without_redis_says_what_to_set(tmp_path: Path, redis: RedisServer) -> None:
    server = replica(tmp_path, "server", redis.url)
    with server:
        path = create(server.http)
        push(server.http, path, 1)
        push(server.http, path, 2)
    with Replica(tmp_path / "server") as without:
        reply = without.http.post("/v1/sessions", json=DESCRIPTION)
        assert_refused(reply, 422, "invalid-field")
        assert (reply.json()["field"], "OPTIMD_REDIS_URL" in reply.json()["detail"]) == ("storage.backend", True)
        reply = push(without.http, path, 3)
        assert_refused(reply, 503, "redis-unavailable")
        assert "OPTIMD_REDIS_URL" in reply.json()["detail"]
        assert without.http.get("/readyz").json()["redis"] is None
