"""HTTP by hand, for requests that stop half way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from reaching import connect


def head(method: str, path: str, length: int, **headers: str) -> bytes:
    """The first lines of a request; `content_type=` is Content-Type."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def push_head(path: str, length: int, **headers: str) -> bytes:
    """The first lines of a push of safetensors to the session at ``path``."""
    return head("POST", f"{path}/steps", length, content_type="application/vnd.safetensors", **headers)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection to the server at ``url``; no call on it waits for longer than 30 s."""
    with connect(url) as connection:
        yield connection


def status_of(connection: socket.socket) -> int:
    """Read a whole reply, and return its status."""
    with connection.makefile("rb") as reply:
        status = int(reply.readline().split()[1])
        length = 0
        while (line := reply.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        reply.read(length)
    return status
