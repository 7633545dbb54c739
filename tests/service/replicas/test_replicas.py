"""Several servers on one Redis serve one session as one server would."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from replica import (
    SAFETENSORS,
    TENSORS,
    Pair,
    Replica,
    assert_stands,
    create,
    grads,
    pull,
    push,
    push_tensors,
    receipt,
    replica,
)

from optimd import Client
from raw_safetensors import tensor_file
from redis_server import RedisServer


def test_training_that_changes_servers_at_every_step_is_the_training_of_one(pair: Pair) -> None:
    path = create(pair.here.http)
    for number in range(1, 9):
        server = (pair.here, pair.there)[number % 2]
        told = receipt(push(server.http, path, number))
        assert (told["step"], told["base_step"], told["durable_step"]) == (number, number - 1, number)
    for server in (pair.here, pair.there):
        assert_stands(server.http, path, range(1, 9))


def test_a_push_that_is_repeated_at_another_server_steps_once(pair: Pair) -> None:
    path = create(pair.here.http)
    first = receipt(push(pair.here.http, path, 1))
    push(pair.here.http, path, 2)
    assert receipt(push(pair.there.http, path, 1)) == first | {"duplicate": True}
    reply = push_tensors(pair.there.http, path, grads(7), "push-1")
    assert (reply.status_code, reply.json()["type"]) == (422, "/problems/key-reused")
    assert_stands(pair.there.http, path, [1, 2])


def test_a_push_that_builds_on_what_another_server_has_left_behind_is_refused(pair: Pair) -> None:
    path = create(pair.here.http)
    push(pair.there.http, path, 1)
    reply = push(pair.here.http, path, 2, if_match='"0.0"')
    assert (reply.status_code, reply.json()["type"], reply.json()["step"]) == (412, "/problems/stale-step", 1)
    assert receipt(push(pair.here.http, path, 2, if_match='"1.0"'))["step"] == 2


def test_servers_that_step_at_once_lose_none_and_take_none_twice(pair: Pair) -> None:
    path = create(pair.here.http)
    push(pair.there.http, path, 0)
    replies: dict[int, Any] = {}

    def train(server: Replica, numbers: range) -> None:
        for number in numbers:
            while (reply := push(server.http, path, number)).status_code == 409:
                assert reply.headers["Retry-After"] == "0"
                assert {"step", "base_step"} <= reply.json().keys()
            replies[number] = receipt(reply)

    numbers = (range(100, 130), range(200, 230))
    workers = [
        threading.Thread(target=train, args=(server, mine))
        for server, mine in zip((pair.here, pair.there), numbers, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not any(told["duplicate"] for told in replies.values())
    assert all(told["base_step"] == told["step"] - 1 for told in replies.values())
    order = sorted(replies, key=lambda number: replies[number]["step"])
    assert order != sorted(order)  # they did take turns
    for server in (pair.here, pair.there):
        assert_stands(server.http, path, [0, *order])


def test_whoever_waits_at_one_server_sees_a_step_that_another_takes(pair: Pair) -> None:
    path = create(pair.here.http)
    waiting = {"If-None-Match": '"0.0"', "Prefer": "wait=20"}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(pair.there.http.get, f"{path}/params", headers=waiting)
        time.sleep(0.5)
        push(pair.here.http, path, 1)
        reply = asked.result()
    assert (reply.status_code, reply.headers["ETag"]) == (200, '"1.0"')


def test_a_server_that_ends_lets_those_go_who_wait_for_another(pair: Pair, tmp_path: Path) -> None:
    path = create(pair.here.http)
    with replica(tmp_path, "third", pair.redis.url) as third, ThreadPoolExecutor() as pool:
        waiting = {"If-None-Match": '"0.0"', "Prefer": "wait=60"}
        asked = pool.submit(third.http.get, f"{path}/params", headers=waiting)
        time.sleep(0.5)
        third._process.terminate()
        assert asked.result().status_code == 304


def change(path: str, number: int, first: httpx.Client, second: httpx.Client) -> None:
    """Everything that changes a session, each at another server than what came before."""
    for reply in (
        first.patch(path, json={"optimizer": {"lr": 0.2}, "clip": {"max_norm": 1.0}, "name": "renamed"}),
        push(second, path, number + 1),
        first.put(f"{path}/params", content=tensor_file(grads(number)), headers=SAFETENSORS),
        push(second, path, number + 2),
        first.put(f"{path}/optimizer", json={"name": "sgd", "lr": 0.1, "momentum": 0.9}),
        push(second, path, number + 3),
        first.put(f"{path}/state", content=second.get(f"{path}/state").content, headers=SAFETENSORS),
        push(second, path, number + 4),
    ):
        assert reply.status_code in {200, 204}, reply.text


def test_whatever_one_server_changes_holds_for_the_other(pair: Pair) -> None:
    here, there = pair.here.http, pair.there.http
    shared, alone = create(here), create(here, storage={"backend": "device"})
    change(shared, 10, here, there)
    change(shared, 20, there, here)
    for number in (10, 20):
        change(alone, number, here, here)
    expected, model = pull(here, alone), here.get(alone).json()
    for client in (here, there):
        weights, told = pull(client, shared), client.get(shared).json()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        for field in ("etag", "name", "optimizer", "hyperparameters", "clip", "skipped", "step"):
            assert told[field] == model[field], field


def test_a_skipped_push_is_counted_by_every_server(pair: Pair, tmp_path: Path) -> None:
    path = create(pair.here.http, nonfinite="skip")
    broken = {name: torch.full_like(grad, float("nan")) for name, grad in grads(0).items()}
    for server, key in ((pair.here, "a"), (pair.there, "b"), (pair.here, "c")):
        reply = push_tensors(server.http, path, broken, key)
        assert receipt(reply)["outcome"] == "skipped_nonfinite"
    with replica(tmp_path, "third", pair.redis.url) as third:
        assert [server.http.get(path).json()["skipped"] for server in (pair.here, pair.there, third)] == [3, 3, 3]


def test_a_session_that_one_server_deletes_is_gone_at_the_other(pair: Pair) -> None:
    path = create(pair.here.http)
    push(pair.there.http, path, 1)
    assert pair.there.http.delete(path).status_code == 204
    for reply in (
        pair.here.http.get(path),
        push(pair.here.http, path, 2),
        pair.here.http.get(f"{path}/params"),
        pair.here.http.get(path),
    ):
        assert (reply.status_code, reply.json()["type"]) == (404, "/problems/session-not-found")
    path = create(pair.here.http)
    assert pair.there.http.delete(path).status_code == 204  # by a server that has never served it
    assert pair.here.http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("field", "description"),
    [
        ("storage.device", {"storage": {"backend": "redis", "device": "cuda"}}),
        ("durability", {"durability": "memory"}),
        ("durability", {"durability": "checkpoint"}),
        ("wire.difference", {"wire": {"params": "bf16", "difference": True}}),
    ],
)
def test_what_a_session_in_redis_cannot_have_is_refused(pair: Pair, field: str, description: dict[str, Any]) -> None:
    fields = {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "storage": {"backend": "redis"}} | description
    reply = pair.here.http.post("/v1/sessions", json=fields)
    assert (reply.status_code, reply.json()["field"]) == (422, field)


def test_a_rollback_of_a_session_in_redis_is_refused(pair: Pair) -> None:
    path = create(pair.here.http)
    push(pair.here.http, path, 1)
    reply = pair.here.http.post(f"{path}/rollback", json={"step": 0})
    assert (reply.status_code, reply.json()["field"]) == (422, "durability")
    assert_stands(pair.there.http, path, [1])


def test_the_sdk_goes_from_server_to_server(pair: Pair) -> None:
    params = {name: grad.numpy() for name, grad in grads(0).items()}
    with Client(pair.here.url) as here, Client(pair.there.url) as there:
        first = here.create_session("sgd", params=params, lr=0.5, storage={"backend": "redis"})
        second = there.session(first.id)
        for number, session in enumerate((first, second, first, second)):
            told = session.step({name: grad.numpy() for name, grad in grads(number).items()}, if_match=None)
            assert told.receipt.step == number + 1


PUSHES = range(1, 101)


def test_both_servers_crash_in_turn_during_training_and_every_push_counts_once(
    redis: RedisServer, tmp_path: Path
) -> None:
    servers = [replica(tmp_path, "one", redis.url), replica(tmp_path, "two", redis.url)]
    with servers[0], servers[1]:
        path = create(servers[0].http)
        done: dict[int, Any] = {}

        def ask(number: int) -> bool:
            """Ask one after the other: of a server that crashes, the next one knows what became of it."""
            for server in servers:
                with suppress(httpx.TransportError, RuntimeError):
                    reply = push(server.http, path, number)
                    if reply.status_code == 200:
                        done[number] = reply.json()["receipt"]
                        return True
            return False

        def train() -> None:
            for number in PUSHES:
                servers.reverse()
                while not ask(number):
                    pass

        trainer = threading.Thread(target=train)
        trainer.start()
        for victim in servers.copy():
            so_far = len(done)
            while trainer.is_alive() and len(done) < so_far + 20:
                time.sleep(0.005)
            victim.crash()
            victim.start_again()
        trainer.join()
        assert [done[number]["step"] for number in sorted(done)] == list(PUSHES)
        for server in servers:
            assert_stands(server.http, path, PUSHES)


def test_a_session_outlives_all_servers(redis: RedisServer, tmp_path: Path) -> None:
    server = replica(tmp_path, "one", redis.url)
    with server:
        path = create(server.http)
        push(server.http, path, 1)
        server.crash()
        server.start_again()
        push(server.http, path, 2)
        assert_stands(server.http, path, [1, 2])
        server.crash()
        server.start_again()
        assert [s["status"] for s in server.http.get("/v1/sessions").json()["sessions"]] == ["live"]


@pytest.mark.parametrize(("point", "committed"), [("redis.before_commit", False), ("redis.after_commit", True)])
def test_what_a_server_left_that_was_killed_at_its_commit_is_settled_by_the_other(
    point: str, redis: RedisServer, tmp_path: Path, *, committed: bool
) -> None:
    creation_and_first_step = 3
    doomed = replica(tmp_path, "doomed", redis.url, FAILPOINTS=f"{point}=kill@{creation_and_first_step + 1}")
    with doomed, replica(tmp_path, "other", redis.url) as other:
        path = create(doomed.http)
        push(doomed.http, path, 1)
        with pytest.raises(httpx.TransportError):
            push(doomed.http, path, 2)
        doomed.crash()
        told = receipt(push(other.http, path, 2))
        assert (told["step"], told["duplicate"]) == (2, committed)
        assert_stands(other.http, path, [1, 2])
