"""Lines and bodies from a socket that gives them in pieces of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from optimd import errors
from optimd._exchange import Request
from optimd._http1 import TensorTransport
from optimd._reading import LINE_BYTES, Reader
from optimd._settings import Settings
from reaching import listening


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Reader]]:
    """A socket to write to, and a reader at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Reader(theirs)


def send(ours: socket.socket, content: bytes) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ours.sendall, content)
        pool.submit(ours.shutdown, socket.SHUT_WR)


def test_lines_and_bodies_come_as_they_were_sent(pair: tuple[socket.socket, Reader]) -> None:
    ours, reader = pair
    body = bytes(range(256)) * 1000
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ours.sendall, b"first\r\n\r\n" + body + b"last\nend")
        place = bytearray(len(body) - 10)
        assert (reader.line(), reader.line()) == (b"first\r\n", b"\r\n")
        assert reader.fill(memoryview(place)) == len(place)
        assert bytes(place) + reader.read(10) == body
        assert reader.line() == b"last\n"
        ours.shutdown(socket.SHUT_WR)
    assert (reader.line(), reader.line(), reader.read(5)) == (b"end", b"", b"")


def test_a_stream_that_ends_gives_less_than_was_asked_for(pair: tuple[socket.socket, Reader]) -> None:
    ours, reader = pair
    send(ours, b"abc")
    assert reader.read(2) == b"ab"
    assert reader.fill(memoryview(bytearray(5))) == 1
    assert reader.read(10**12) == b""


def test_a_line_is_no_longer_than_the_memory_for_it(pair: tuple[socket.socket, Reader]) -> None:
    ours, reader = pair
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ours.sendall, b"ab\n" + b"x" * (LINE_BYTES + 5) + b"\n")
        assert reader.line() == b"ab\n"
        assert len(reader.line()) == LINE_BYTES
        assert reader.line() == b"x" * 5 + b"\n"


def test_a_server_that_does_not_read_is_a_timeout() -> None:
    with listening() as (_, url):
        transport = TensorTransport(Settings.resolve(url, timeout=0.05, environ={}))
        request = Request("POST", "/", body=[memoryview(bytes(2**20))] * 8)
        with pytest.raises(errors.TimedOut):
            transport.exchange(request)
