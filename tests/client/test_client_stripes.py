"""Large bodies over two connections at once, against a real server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import optimd
from optimd import errors
from optimd._connection import Connection
from optimd._exchange import Reply, Request
from optimd._http1 import TensorTransport
from optimd._safetensors import RawTensor
from reaching import connections

SHAPES = {"a": (3000, 1000), "b": (7,), "c": (1_500_000,)}
GENERATOR = np.random.default_rng(0)
WEIGHTS = {name: GENERATOR.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
GRADS = {name: GENERATOR.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


class Watched:
    """Notes what a client asks of its transport, and what each connection carries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole: list[Request] = []
        self.carried: list[Request] = []
        self.before: Any = None
        exchange, exchange_on = TensorTransport.exchange, Connection.exchange

        def noted(transport: TensorTransport, request: Request) -> Reply:
            self.whole.append(request)
            if self.before is not None:
                self.before(request)
            return exchange(transport, request)

        def carried(connection: Connection, head: bytes, request: Request, timeout_s: float) -> Reply:
            self.carried.append(request)
            return exchange_on(connection, head, request, timeout_s)

        monkeypatch.setattr(TensorTransport, "exchange", noted)
        monkeypatch.setattr(Connection, "exchange", carried)

    @property
    def halves(self) -> list[str]:
        """Of the requests that came in two, method and part."""
        parts = ((request.method, request.headers) for request in self.carried)
        return sorted(
            f"{method} {headers.get('content-range') or headers.get('range')}"
            for method, headers in parts
            if "content-range" in headers or "range" in headers
        )


@pytest.fixture(autouse=True)
def large_from_here_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimd._cutting.LARGE_BYTES", 2**23)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture
def client(server_url: str) -> Iterator[optimd.Client]:
    with optimd.Client(server_url) as client:
        yield client


def created(client: optimd.Client, **description: Any) -> optimd.Session:
    return client.create_session("sgd", params=WEIGHTS, lr=0.5, **description)


@pytest.fixture
def session(client: optimd.Client) -> Iterator[optimd.Session]:
    session = created(client)
    yield session
    session.delete()


def assert_weights(params: dict[str, Any], steps: int = 1) -> None:
    expected = dict(WEIGHTS)
    for _ in range(steps):
        expected = {name: expected[name] - np.float32(0.5) * GRADS[name] for name in expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, strict=True)


def test_a_large_step_goes_over_two_connections_both_ways(session: optimd.Session, watched: Watched) -> None:
    out = {name: np.empty_like(array) for name, array in WEIGHTS.items()}
    result = session.step(GRADS, out=out)
    assert len(watched.halves) == 4
    assert result.receipt.step == 1
    assert all(result.params[name] is out[name] for name in out)
    assert_weights(out)
    assert session.etag == "1.0"


def test_what_it_gives_is_to_the_bit_what_one_connection_gives(server_url: str, watched: Watched) -> None:
    found = []
    for number in (1, 2):
        with optimd.Client(server_url, connections=number) as client:
            session = client.create_session("adamw", params=WEIGHTS)
            results = [session.step(GRADS, loss=0.5) for _ in range(2)]
            found.append([(result.receipt.grad_norm, result.receipt.param_norm, result.params) for result in results])
            assert len(watched.halves) == (number - 1) * 8
            session.delete()
    for (norm, length, params), (other_norm, other_length, others) in zip(*found, strict=True):
        assert (norm, length) == (other_norm, other_length)
        for name in WEIGHTS:
            np.testing.assert_array_equal(params[name], others[name], strict=True)


@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_other_dtypes_are_converted_on_the_way_of_each_half(
    session: optimd.Session, watched: Watched, dtype: Any
) -> None:
    grads = {name: array.astype(np.float64) for name, array in GRADS.items()}
    out = {name: np.empty_like(array) for name, array in WEIGHTS.items()}
    session.step(grads, send=dtype, pull=dtype, out=out)
    assert len(watched.halves) == 4
    whole = session.pull(dtype=dtype, names=list(SHAPES))
    for name, array in out.items():
        np.testing.assert_array_equal(array, whole[name].astype(np.float32), strict=True)
    tolerance = {"bf16": 2**-6, "f64": 1e-6}[dtype]
    for name, array in WEIGHTS.items():
        np.testing.assert_allclose(out[name], array - 0.5 * GRADS[name], rtol=tolerance, atol=tolerance)


def test_raw_tensors_are_received_in_halves_too(session: optimd.Session, watched: Watched) -> None:
    memory = {name: np.empty_like(array) for name, array in WEIGHTS.items()}
    out = {name: RawTensor("F32", array.shape, array) for name, array in memory.items()}
    session.step({name: RawTensor("F32", array.shape, array) for name, array in GRADS.items()}, out=out)
    assert len(watched.halves) == 4
    assert_weights(memory)


def test_a_pull_comes_in_halves_of_one_version(session: optimd.Session, watched: Watched) -> None:
    session.push(GRADS)
    assert_weights(session.pull())
    assert [half.split()[0] for half in watched.halves] == ["GET", "GET", "POST", "POST"]


def test_a_worker_that_steps_in_between_makes_the_weights_newer_and_never_mixed(
    client: optimd.Client, session: optimd.Session, watched: Watched
) -> None:
    other = client.session(session.id)

    def step_in_between(request: Request) -> None:
        if request.method == "GET" and request.cut_at is not None:
            watched.before = None
            other.push(GRADS, if_match=None)

    watched.before = step_in_between
    result = session.step(GRADS)
    assert result.receipt.step == 1
    assert_weights(result.params, steps=2)
    assert session.etag == "2.0"
    other.push(GRADS)
    assert_weights(session.pull(), steps=3)


@pytest.mark.parametrize("at", [0, 1])
def test_when_either_connection_breaks_the_push_goes_again_whole_and_counts_once(
    session: optimd.Session, watched: Watched, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    exchange, broken = Connection.exchange, []

    def breaking(connection: Connection, head: bytes, request: Request, timeout_s: float) -> Reply:
        ours = request.headers.get("content-range", "").startswith("bytes 0-") == (at == 0)
        if "content-range" in request.headers and ours and not broken:
            broken.append(request)
            connection._socket.sendall(head + b"".join(request.buffers())[:1_000_000])
            connection._socket.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return exchange(connection, head, request, timeout_s)

    monkeypatch.setattr(Connection, "exchange", breaking)
    result = session.step(GRADS)
    assert len(broken) == 1
    assert watched.whole[-2].cut_at is None
    assert (result.receipt.step, result.receipt.duplicate) == (1, False)
    assert_weights(result.params)
    assert len(list(session.history())) == 1


def test_a_lost_reply_is_asked_for_again_and_the_step_is_not_taken_twice(
    session: optimd.Session, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, lost = Connection.exchange, []

    def losing(connection: Connection, head: bytes, request: Request, timeout_s: float) -> Reply:
        reply = exchange(connection, head, request, timeout_s)
        if request.headers.get("content-range", "").startswith("bytes 0-") and not lost:
            lost.append(request)
            raise ConnectionResetError
        return reply

    monkeypatch.setattr(Connection, "exchange", losing)
    result = session.step(GRADS)
    assert (result.receipt.step, result.receipt.duplicate) == (1, True)
    assert_weights(result.params)


def test_a_refusal_is_told_at_once_and_the_session_goes_on(session: optimd.Session, watched: Watched) -> None:
    with pytest.raises(errors.StaleStep):
        session.step(GRADS, if_match="7.0")
    with pytest.raises(errors.NonfiniteGradients):
        session.step({**GRADS, "b": np.full(7, np.nan, np.float32)})
    assert_weights(session.step(GRADS).params)


@pytest.mark.parametrize("number", ["1", "2"])
def test_the_number_of_connections_is_a_setting(
    server_url: str, watched: Watched, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv("OPTIMD_CONNECTIONS", number)
    with optimd.Client(server_url) as client:
        session = created(client)
        session.push(GRADS)
        assert len(watched.halves) == 2 * (int(number) - 1)
        session.delete()


@pytest.mark.parametrize("number", ["0", "3", "two", "1.0"])
def test_another_number_of_connections_is_refused(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("OPTIMD_CONNECTIONS", number)
    with pytest.raises(errors.InvalidSetting, match="OPTIMD_CONNECTIONS"):
        optimd.Client("http://127.0.0.1:1")


def test_what_cannot_come_in_halves_travels_whole(
    client: optimd.Client, session: optimd.Session, watched: Watched
) -> None:
    small = client.create_session("sgd", params={"w": np.zeros(100_000, np.float32)})
    small.step({"w": np.zeros(100_000, np.float32)})
    small.delete()
    told = created(client, wire={"params": "BF16", "difference": True})
    told.step(GRADS, out={name: np.empty_like(array) for name, array in WEIGHTS.items()})
    told.delete()
    mixed = {**GRADS, "a": GRADS["a"].astype(np.float64)}
    session.push(mixed)
    session.step(mixed, out={"a": np.empty(SHAPES["a"][::-1], np.float32).T})
    assert watched.halves == []


def test_connections_and_threads_are_kept_and_end_with_the_client(server_url: str) -> None:
    threads, open_before = set(threading.enumerate()), connections(server_url)
    with optimd.Client(server_url) as client:
        session = created(client)
        for _ in range(3):
            session.step(GRADS)
        assert connections(server_url) == open_before + 2
        started = set(threading.enumerate()) - threads
        assert len(started) == 1
        session.delete()
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)
    while connections(server_url) > open_before:
        pass


def test_several_threads_push_to_several_sessions_through_one_client(client: optimd.Client) -> None:
    sessions = [created(client) for _ in range(3)]
    pushes = [threading.Thread(target=session.push, args=(GRADS,)) for session in sessions]
    for push in pushes:
        push.start()
    for push in pushes:
        push.join()
    for session in sessions:
        assert_weights(session.pull())
        session.delete()


def test_several_workers_of_one_session_wait_for_each_other(client: optimd.Client, session: optimd.Session) -> None:
    handles = [client.session(session.id) for _ in range(3)]
    pushes = [threading.Thread(target=handle.step, args=(GRADS,), kwargs={"if_match": None}) for handle in handles]
    for push in pushes:
        push.start()
    for push in pushes:
        push.join()
    assert_weights(session.pull(), steps=3)


def test_a_forked_child_has_connections_and_a_thread_of_its_own(session: optimd.Session) -> None:
    session.step(GRADS)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if session.step(GRADS).receipt.step == 2 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert_weights(session.pull(), steps=2)


def test_a_pull_that_fails_leaves_the_handle_at_the_weights_that_are_here(
    session: optimd.Session, watched: Watched
) -> None:
    def failing(request: Request) -> None:
        if request.method == "GET":
            raise errors.MalformedReply("no")

    watched.before = failing
    with pytest.raises(errors.MalformedReply):
        session.step(GRADS)
    watched.before = None
    assert session.etag == "0.0"
    with pytest.raises(errors.StaleStep):
        session.step(GRADS)
