"""The tensor transport against real sockets, and against servers that misbehave byte by byte."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from fake_service import Answer, FakeService

import optimd
from optimd import errors
from optimd._exchange import Request
from optimd._http1 import TensorTransport
from optimd._settings import Settings
from optimd._sink import TensorSink
from reaching import listening

GET = Request("GET", "/v1/sessions/s1")
ONCE = Request("GET", "/v1/sessions/s1", repeatable=False)


class Script:
    """A server that answers each connection with the next list of raw replies, then closes it."""

    def __init__(self, *connections: list[bytes]) -> None:
        self.connections = list(connections)
        self.requests: list[bytes] = []
        self.accepted = 0
        self.closed = threading.Semaphore(0)

    def run(self, listener: socket.socket) -> None:
        for replies in self.connections:
            peer, _ = listener.accept()
            self.accepted += 1
            with peer, peer.makefile("rb") as reader:
                for reply in replies:
                    self.requests.append(self._request(reader))
                    peer.sendall(reply)
            self.closed.release()

    @staticmethod
    def _request(reader) -> bytes:  # type: ignore[no-untyped-def]
        head = b"".join(iter(reader.readline, b"\r\n"))
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        return head + reader.read(int(lengths[0].split(b":")[1]) if lengths else 0)


@contextmanager
def serving(script: Script, *, timeout: float = 5.0) -> Iterator[TensorTransport]:
    with listening() as (listener, url):
        listener.settimeout(10)
        thread = threading.Thread(target=script.run, args=(listener,))
        thread.start()
        transport = TensorTransport(Settings.resolve(url, timeout=timeout, environ={}))
        try:
            yield transport
        finally:
            transport.close()
            thread.join()


def reply(body: bytes = b"{}", extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


def test_a_connection_is_kept_for_the_next_request() -> None:
    script = Script([reply(b"1"), reply(b"2")])
    with serving(script) as transport:
        assert [bytes(transport.exchange(GET).body) for _ in range(2)] == [b"1", b"2"]
    assert script.accepted == 1


def test_a_request_goes_out_again_when_its_kept_connection_was_closed() -> None:
    script = Script([reply(b"1")], [reply(b"2")])
    with serving(script) as transport:
        transport.exchange(GET)
        script.closed.acquire()
        assert bytes(transport.exchange(GET).body) == b"2"


def test_a_request_that_must_not_repeat_is_not_sent_again_by_itself() -> None:
    script = Script([reply(b"1")])
    with serving(script) as transport:
        transport.exchange(GET)
        script.closed.acquire()
        with pytest.raises(errors.ConnectionFailed):
            transport.exchange(ONCE)
    assert script.accepted == 1


def test_a_connection_closed_while_idle_is_not_used_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimd._connection._TRUSTED_IDLE_S", -1.0)
    script = Script([reply(b"1")], [reply(b"2")])
    with serving(script) as transport:
        transport.exchange(GET)
        script.closed.acquire()
        assert bytes(transport.exchange(ONCE).body) == b"2"


def test_a_fresh_connection_that_is_closed_unanswered_is_an_error() -> None:
    with serving(Script([b""])) as transport, pytest.raises(errors.ConnectionFailed):
        transport.exchange(GET)


@pytest.mark.parametrize("close", ["connection: close\r\n", "Connection: Close\r\n"])
def test_a_connection_that_the_server_will_close_is_not_kept(close: str) -> None:
    script = Script([reply(b"1", close)], [reply(b"2")])
    with serving(script) as transport:
        assert [bytes(transport.exchange(ONCE).body) for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nt: u\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil closed", b"until closed"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", b"a"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply(b"a"), b"a"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b""),
        (b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
def test_every_framing_of_a_body_is_read(raw: bytes, body: bytes) -> None:
    with serving(Script([raw])) as transport:
        assert bytes(transport.exchange(GET).body) == body


def test_a_head_request_has_no_body() -> None:
    with serving(Script([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"])) as transport:
        assert bytes(transport.exchange(Request("HEAD", "/")).body) == b""


def test_repeated_headers_are_joined() -> None:
    with serving(Script([reply(extra="X-A: 1\r\nx-a:  2 \r\n")])) as transport:
        assert transport.exchange(GET).headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"SSH-2.0-OpenSSH\r\n", errors.MalformedReply),
        (b"HTTP/1.1 abc\r\n\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n", errors.MalformedReply),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", errors.ConnectionFailed),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nshort", errors.ConnectionFailed),
        (b"HTTP/1.1 200 OK\r\ncontent-le", errors.ConnectionFailed),
    ],
)
def test_a_reply_that_is_cut_or_mangled_is_a_typed_error(raw: bytes, error: type[Exception]) -> None:
    with serving(Script([raw])) as transport, pytest.raises(error):
        transport.exchange(GET)


def test_silence_is_a_timeout() -> None:
    with listening() as (_, url):
        transport = TensorTransport(Settings.resolve(url, timeout=0.05, environ={}))
        with pytest.raises(errors.TimedOut):
            transport.exchange(GET)


def unused_url() -> str:
    with listening() as (_, url):
        return url


@pytest.mark.parametrize("where", [unused_url, lambda: "http://name.invalid"], ids=["refused", "unknown-host"])
def test_what_cannot_be_reached_was_not_sent(where: Callable[[], str]) -> None:
    url = where()
    with pytest.raises(errors.NotConnected, match="No connection to"):
        TensorTransport(Settings.resolve(url, environ={})).exchange(GET)


def test_a_header_cannot_smuggle_another() -> None:
    smuggling = Request("GET", "/", {"idempotency-key": "k\r\nx: y"})
    with FakeService().serving() as url:
        transport = TensorTransport(Settings.resolve(url, environ={}))
        with pytest.raises(ValueError, match="line break"):
            transport.exchange(smuggling)


def test_an_answer_given_before_the_body_was_read_is_still_heard() -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"

    class Early(Script):
        def _request(self, reader) -> bytes:  # type: ignore[no-untyped-def]
            return reader.readline()

    with serving(Early([refusal])) as transport:
        body = [memoryview(bytes(2**20))] * 16
        assert transport.exchange(Request("POST", "/", body=body)).status == 413


def test_a_large_body_arrives_whole_and_in_order() -> None:
    service = FakeService()
    pieces = [np.arange(300_000, dtype=np.float64), np.arange(5, dtype=np.float64)]
    views = [memoryview(piece).cast("B") for piece in pieces]
    with service.serving() as url:
        TensorTransport(Settings.resolve(url, environ={})).exchange(Request("POST", "/x", body=views))
    assert service.seen[0].body == b"".join(views)


def test_threads_share_a_client_without_mixing_replies(service: FakeService) -> None:
    service._route = lambda seen: Answer(200, {}, seen.target.encode() * 1000)  # type: ignore[method-assign]
    with service.serving() as url:
        transport = TensorTransport(Settings.resolve(url, environ={}))

        def mixed_up(thread: int) -> int:
            targets = [f"/{thread}-{i}" for i in range(50)]
            bodies = [bytes(transport.exchange(Request("GET", target)).body) for target in targets]
            return sum(body != target.encode() * 1000 for body, target in zip(bodies, targets, strict=True))

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(mixed_up, range(8))) == 0
        assert len(transport._idle) <= 8
        transport.close()
    assert len(service.seen) == 400


def test_threads_step_one_session_exactly_once_each(service: FakeService) -> None:
    grads = {"w": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    with service.serving() as url, optimd.Client(url) as client:
        session = client.session("s1")
        with ThreadPoolExecutor(4) as pool:
            steps = list(pool.map(lambda _: session.push(grads, if_match=None).step, range(40)))
    assert sorted(steps) == list(range(1, 41))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([reply(b"1")], [reply(b"2")])
    with serving(script) as transport:
        transport.exchange(GET)
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert bytes(transport.exchange(GET).body) == b"2"
    assert script.accepted == 2


def test_a_reply_that_lies_about_its_tensors_closes_the_connection() -> None:
    lies = reply(b"\0" * 20, "content-type: application/vnd.safetensors\r\n")
    with serving(Script([lies], [reply(b"2")])) as transport:
        with pytest.raises(errors.MalformedReply):
            transport.exchange(Request("GET", "/", sink=TensorSink()))
        assert bytes(transport.exchange(GET).body) == b"2"


def test_a_problem_does_not_reach_the_sink(service: FakeService) -> None:
    out = {"w": np.full((2, 3), 9.0, np.float32)}
    with service.serving() as url, optimd.Client(url) as client:
        session = client.session("s1")
        with pytest.raises(optimd.StaleStep):
            session.step({}, if_match="9", out=out)
    assert (out["w"] == 9.0).all()
