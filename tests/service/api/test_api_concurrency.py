"""Many clients at once, against one real server."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, WEIGHTS, Subject, assert_equal, receipt_of
from safetensors.torch import load

from raw_safetensors import tensor_file
from reaching import connect

LENGTH = 2_000_000


def slow_reader(server_url: str) -> http.client.HTTPConnection:
    """A connection whose end takes so little at a time that the server has to wait for it."""
    reader = http.client.HTTPConnection("localhost")
    reader.sock = connect(server_url, receive_bytes=65_536)
    return reader


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run all of them, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.fixture
def even(http: httpx.Client) -> Iterator[Subject]:
    """A large session whose elements are all equal at every step, so that a mixture of two would show."""
    subject = Subject.create(http, "sgd", params={"a": torch.zeros(LENGTH), "b": torch.zeros(100)}, lr=1.0)
    yield subject
    http.delete(subject.path)


EVEN_PUSH = {"a": torch.full((LENGTH,), -1.0), "b": torch.full((100,), -1.0)}


def trajectory(http: httpx.Client, seed: int) -> dict[str, torch.Tensor]:
    """Where fifty steps from random gradients lead."""
    generator = torch.Generator().manual_seed(seed)
    subject = Subject.create(http, "adamw", lr=0.1)
    for step in range(50):
        grads = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in WEIGHTS.items()}
        reply = subject.push(grads, if_match=f'"{step}.0"')
        assert reply.status_code == 200, reply.text
    assert [row["step"] for row in subject.steps()] == list(range(1, 51))
    http.delete(subject.path)
    return load(reply.content)


def test_sessions_side_by_side_go_the_same_way_as_alone(http: httpx.Client) -> None:
    alone = trajectory(http, 0)
    for together in at_once([lambda: trajectory(http, 0)] * 10):
        assert_equal(together, alone)


def test_a_pull_is_of_one_step_while_others_push(http: httpx.Client, even: Subject) -> None:
    content = tensor_file(EVEN_PUSH)
    headers = {"Content-Type": "application/vnd.safetensors"}

    def push() -> None:
        for step in range(20):
            match = {"If-Match": f'"{step}"'}
            assert http.post(f"{even.path}/steps?pull=none", content=content, headers=headers | match).is_success

    def pull() -> None:
        step = 0
        while step < 20:
            reply = http.get(f"{even.path}/params")
            step = int(reply.headers["etag"].strip('"').partition(".")[0])
            tensors = load(reply.content)
            assert (
                {tensors[name].min().item() for name in "ab"} == {tensors[name].max().item() for name in "ab"} == {step}
            )

    def pull_json() -> None:
        step = 0
        while step < 20:
            some = http.get(f"{even.path}/params?names=b", headers={"Accept": "application/json"}).json()
            step = some["step"]
            assert set(some["params"]["b"]) == {step}

    at_once([push, pull, pull_json])


def test_a_slow_reader_gets_the_version_that_its_etag_names(server_url: str, even: Subject) -> None:
    even.push(EVEN_PUSH)
    reader = slow_reader(server_url)
    reader.request("GET", f"{even.path}/params")
    reply = reader.getresponse()
    assert reply.headers["etag"] == '"1.0"'
    pieces = [reply.read(1000)]
    for step in range(20):
        assert receipt_of(even.push(EVEN_PUSH, pull="none"))["step"] == step + 2
        pieces.append(reply.read(50_000))
    pieces.append(reply.read())
    reader.close()
    tensors = load(b"".join(pieces))
    assert tensors["a"].shape == (LENGTH,)
    assert all((tensor == 1).all() for tensor in tensors.values())
    assert (even.pull()["a"] == 21).all()


def test_a_slow_reader_of_a_reply_to_a_push_gets_its_own_step(server_url: str, even: Subject) -> None:
    reader = http.client.HTTPConnection("localhost")
    reader.sock = connect(server_url)
    headers = {"Content-Type": "application/vnd.safetensors", "If-Match": '"0"'}
    reader.request("POST", f"{even.path}/steps", tensor_file(EVEN_PUSH), headers)
    reply = reader.getresponse()
    first = reply.read(1000)
    for _ in range(3):
        even.push(EVEN_PUSH, pull="none")
    tensors = load(first + reply.read())
    reader.close()
    assert all((tensor == 1).all() for tensor in tensors.values())


def test_every_key_steps_once_however_often_it_is_sent(http: httpx.Client, subject: Subject) -> None:
    keys = [f"key-{i}" for i in range(10)]

    def push_each_twice(offset: int) -> list[dict[str, Any]]:
        receipts = []
        for key in [*keys[offset:], *keys[:offset]] * 2:
            reply = subject.push(key=key)
            while reply.status_code == 409:
                reply = subject.push(key=key)
            receipts.append(receipt_of(reply))
        return receipts

    receipts = [r for found in at_once([lambda i=i: push_each_twice(i) for i in range(6)]) for r in found]  # type: ignore[misc]
    assert len(receipts) == 120
    assert sorted(r["step"] for r in receipts if not r["duplicate"]) == list(range(2, 12))
    assert [row["step"] for row in subject.steps()] == list(range(1, 12))


def test_of_those_that_build_on_one_step_exactly_one_wins(subject: Subject) -> None:
    def push_on(match: str) -> int:
        return subject.push(if_match=match).status_code

    for step in range(1, 11):
        statuses = at_once([lambda step=step: push_on(f'"{step}.0"')] * 6)  # type: ignore[misc]
        assert sorted(statuses) == [200, *[412] * 5]
    assert subject.etag() == '"11.0"'


def test_putting_and_stepping_at_once_never_mix(even: Subject) -> None:
    ten = {name: torch.full_like(tensor, 10.0) for name, tensor in EVEN_PUSH.items()}
    content = tensor_file(ten)
    headers = {"Content-Type": "application/vnd.safetensors"}

    def put() -> None:
        for _ in range(5):
            assert even.http.put(f"{even.path}/params", content=content, headers=headers).is_success

    def push() -> None:
        for i in range(5):
            for tensor in load(even.push(EVEN_PUSH, key=f"k{i}").content).values():
                assert tensor.min() == tensor.max()

    at_once([put, push])
    assert even.etag() == '"5.5"'


def test_a_session_is_shown_with_the_etag_of_its_own_description(http: httpx.Client, subject: Subject) -> None:
    done = threading.Event()

    def push_all() -> None:
        try:
            for n in range(200):
                assert subject.push(GRADS, key=f"k{n}", pull="none").status_code == 200
        finally:
            done.set()

    def look() -> set[bool]:
        same = {True}
        while not done.is_set():
            reply = http.get(subject.path)
            same.add(reply.headers["etag"] == f'"{reply.json()["etag"]}"')
        return same

    assert at_once([push_all, look])[1] == {True}


def test_a_session_deleted_under_its_users_answers_every_one(http: httpx.Client) -> None:
    subject = Subject.create(http)

    def use(name: str) -> int:
        for i in itertools.count():
            status = subject.push(key=f"{name}-{i}").status_code
            if status != 200:
                return status
        raise AssertionError

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use, str(i)) for i in range(4)]
        subject.push(GRADS, key="last")
        assert http.delete(subject.path).status_code == 204
        assert {user.result() for user in users} == {404}
