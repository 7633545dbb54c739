"""Bodies above a megabyte, which go between socket and memory past the HTTP server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api_subject import Subject, assert_equal, receipt_of, wait_until_in_flight
from raw_socket import connected, head, push_head, status_of

from raw_safetensors import tensor_file
from reaching import connect, connections, http_client
from server_process import ServerProcess

SHAPES = {"a": (300, 1000), "b": (7,), "c": (1_100_000,), "d": (0, 3), "e": (900, 1000)}
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = {name: torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}
GRADS = {name: torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}
CONTENT = tensor_file(GRADS)
LR = 0.5
# More than the threads that the server keeps for bodies on their way.
MANY = 40


def stepped(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: WEIGHTS[name] - LR * grads[name].float() for name in WEIGHTS}


@pytest.fixture
def large(http: httpx.Client) -> Iterator[Subject]:
    subject = Subject.create(http, "sgd", params=WEIGHTS, lr=LR)
    yield subject
    http.delete(subject.path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [list("abcde"), list("ecdba")])
def test_gradients_land_where_they_belong_in_any_order_and_dtype(
    large: Subject, dtype: torch.dtype, order: list[str]
) -> None:
    grads = {name: GRADS[name].to(dtype) for name in order}
    reply = large.push(grads)
    flat = torch.cat([grads[name].double().reshape(-1) for name in WEIGHTS])
    assert receipt_of(reply)["grad_norm"] == pytest.approx(flat.norm().item(), rel=1e-12)
    assert_equal(large.pull(), {name: WEIGHTS[name] - LR * grads[name].float() for name in WEIGHTS})


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "adafactor"])
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"clip": {"max_norm": 1.0}},
        {"accumulate": {"steps": 2}},
        {"maximize": True, "centralize": True},
        {"maximize": True},
        {"nonfinite": "zero"},
        {"state_dtype": "bf16"},
    ],
    ids=str,
)
def test_bfloat16_gradients_step_as_the_numbers_they_are(
    http: httpx.Client, optimizer: str, policy: dict[str, Any]
) -> None:
    if optimizer != "adamw" and "state_dtype" in policy:
        pytest.skip("its state is kept in one dtype")
    weights, buffer = {name: WEIGHTS[name] for name in "abc"}, torch.zeros(3)
    one, other = (
        Subject.create(http, optimizer, params=weights | {"seen": buffer}, buffers=["seen"], **policy) for _ in range(2)
    )
    for sign in (1.0, -0.5):
        narrow = {name: (sign * GRADS[name]).bfloat16() for name in weights} | {"seen": torch.ones(3).bfloat16()}
        if "nonfinite" in policy:
            narrow["b"][2] = float("nan")
        receipt = receipt_of(one.push(narrow))
        wide = receipt_of(other.push({name: tensor.float() for name, tensor in narrow.items()}))
        assert {**receipt, "session": ""} == {**wide, "session": ""}
    assert_equal(one.pull(), other.pull())
    for subject in (one, other):
        http.delete(subject.path)


def test_tensors_of_different_dtypes_land_in_one_body(large: Subject) -> None:
    grads = {"a": GRADS["a"].half(), **{name: GRADS[name] for name in "bcd"}, "e": GRADS["e"].bfloat16()}
    large.push(grads)
    assert_equal(large.pull(), stepped(grads))


@pytest.mark.parametrize("cut", [0, 9, 100, 2_000_000, len(CONTENT) - 1])
def test_a_body_may_come_in_two_parts_cut_anywhere(server_url: str, large: Subject, cut: int) -> None:
    with connected(server_url) as connection:
        connection.sendall(push_head(large.path, len(CONTENT), idempotency_key="k") + CONTENT[:cut])
        wait_until_in_flight(large, "k")
        connection.sendall(CONTENT[cut:])
        assert status_of(connection) == 200
    assert_equal(large.pull(), stepped(GRADS))


def test_requests_behind_a_large_one_on_its_connection_are_answered_in_turn(server_url: str, large: Subject) -> None:
    first = push_head(large.path, len(CONTENT), idempotency_key="1") + CONTENT
    second = push_head(large.path, len(CONTENT), idempotency_key="2") + CONTENT
    last = head("GET", large.path, 0)
    with connected(server_url) as connection:
        connection.sendall(first)
        assert status_of(connection) == 200
        connection.sendall(second + last)
        assert status_of(connection) == 200
        assert status_of(connection) == 200
    assert large.etag() == '"2.0"'


@pytest.mark.parametrize("wrong", [-4, 4])
def test_a_length_that_is_not_the_payloads_is_refused_and_changes_nothing(
    server_url: str, large: Subject, wrong: int
) -> None:
    before = large.stands()
    body = (CONTENT + bytes(8))[: len(CONTENT) + wrong]
    with connected(server_url) as connection:
        connection.sendall(push_head(large.path, len(body), idempotency_key="k") + body)
        assert status_of(connection) == 400
    assert large.stands() == before
    assert large.push(GRADS).status_code == 200


@pytest.mark.parametrize("sent", [9, 2_000_000])
def test_a_large_body_that_stalls_is_given_up_and_frees_the_session(tmp_path: Path, sent: int) -> None:
    with ServerProcess(tmp_path / "data", IDLE_TIMEOUT_S="0.5") as server, http_client(server.url) as http:
        subject = Subject.create(http, "sgd", params=WEIGHTS, lr=LR)
        for method, below in (("POST", "/steps"), ("PUT", "/params")):
            before = subject.stands()
            request = head(method, subject.path + below, len(CONTENT), content_type="application/vnd.safetensors",
                           if_match=before["session"]["etag"].join('""'))  # fmt: skip
            with connected(server.url) as connection:
                connection.sendall(request + CONTENT[:sent])
                assert status_of(connection) == 408
                if sent > 9:  # received past the HTTP server, which does not know where the next request begins
                    assert connection.recv(1) == b""
            assert subject.stands() == before
        assert subject.push(GRADS).status_code == 200


def test_however_many_bodies_are_on_their_way_others_get_through(server_url: str, http: httpx.Client) -> None:
    subjects = [Subject.create(http, "sgd", params=WEIGHTS, lr=LR) for _ in range(MANY + 1)]
    with ExitStack() as stack:
        open_ones = [stack.enter_context(connected(server_url)) for _ in range(MANY)]
        for subject, connection in zip(subjects, open_ones, strict=False):
            connection.sendall(push_head(subject.path, len(CONTENT), idempotency_key="k") + CONTENT[:2_000_000])
        for subject in subjects[:MANY]:
            wait_until_in_flight(subject, "k")
        assert subjects[MANY].push(GRADS).status_code == 200
        for connection in open_ones:
            connection.sendall(CONTENT[2_000_000:])
        assert [status_of(connection) for connection in open_ones] == [200] * MANY
    for subject in subjects:
        assert_equal(subject.pull(), stepped(GRADS))
        http.delete(subject.path)


def test_a_client_that_leaves_in_the_middle_of_a_reply_harms_nobody(server_url: str, large: Subject) -> None:
    for _ in range(3):
        with connect(server_url, receive_bytes=65_536) as connection:
            connection.sendall(head("GET", f"{large.path}/params", 0))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not close
    assert_equal(large.pull(), WEIGHTS)
    assert large.push(GRADS).status_code == 200
    assert_equal(large.pull(), stepped(GRADS))


def test_a_client_that_stops_reading_is_given_up(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", IDLE_TIMEOUT_S="0.5") as server, http_client(server.url) as http:
        subject = Subject.create(http, "sgd", params={"w": torch.zeros(10_000_000)}, lr=LR)
        others = connections(server.url)
        with connect(server.url, receive_bytes=65_536) as connection:
            connection.sendall(head("GET", f"{subject.path}/params", 0))
            while connections(server.url) > others:
                assert http.get("/healthz").status_code == 200
            assert subject.push({"w": torch.ones(10_000_000)}).status_code == 200


def test_a_pull_while_steps_are_taken_is_of_one_step(server_url: str, http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params={"w": torch.zeros(3_000_000)}, lr=1.0)
    ones = {"w": torch.ones(3_000_000)}
    with connect(server_url, receive_bytes=65_536) as connection:
        connection.sendall(head("GET", f"{subject.path}/params", 0))
        received = connection.recv(100_000)
        for _ in range(3):
            assert subject.push(ones).status_code == 200
        while len(received) < 12_000_000:
            received += connection.recv(1_000_000)
        body = received[received.index(b"\r\n\r\n") + 4 :]
        length = int.from_bytes(body[:8], "little")
        while len(body) < 8 + length + 12_000_000:
            body += connection.recv(1_000_000)
    assert not any(body[8 + length :])
    http.delete(subject.path)
