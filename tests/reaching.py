"""What servers of a test run listen on, a port or a Unix socket (`pytest --transport unix`), and how to reach them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

Device = Literal["cpu", "posing", "cuda"]
Transport = Literal["tcp", "unix"]

transport: Transport = "tcp"
"""This run's; conftest sets it before the first test."""
device: Device = "cpu"
"""Where this run's sessions lie, as far as they are made by ``api_subject``; ``posing`` is what poses as ``cuda``."""

UNIX = "unix:"
LIMITS = httpx.Limits(max_connections=100)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, and the URL of whoever serves on it."""
    if transport == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"
        return
    with TemporaryDirectory(prefix="optimd-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        yield listener, f"{UNIX}{folder}/s"


def http_client(url: str, *, limits: httpx.Limits = LIMITS, **options: Any) -> httpx.Client:
    """An httpx client of the server at ``url``, past any proxy; ``options`` are httpx.Client's."""
    uds = url.removeprefix(UNIX) if url.startswith(UNIX) else None
    over = httpx.HTTPTransport(uds=uds, limits=limits)
    base_url = url if uds is None else "http://localhost"
    return httpx.Client(**{"base_url": base_url, "transport": over, "trust_env": False, "timeout": 30} | options)


def connect(url: str, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection to the server at ``url``, no call on which waits for longer than 30 s.

    Args:
      receive_bytes: of the kernel's buffer on our side; by default as many as it likes.
    """
    at = urlsplit(url)
    family, address = (
        (socket.AF_UNIX, at.path) if at.scheme == "unix" else (socket.AF_INET, (at.hostname or "", at.port or 0))
    )
    connection = socket.socket(family)
    connection.settimeout(30)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(address)
    return connection


def connections(url: str) -> int:
    """How many connections clients hold open to the server at ``url``, as the kernel counts them."""
    at = urlsplit(url)
    if at.scheme == "unix":
        rows = _kernels_table("unix")
        return sum(row[-1] == at.path and row[5] == "03" for row in rows)
    return sum(row[1].endswith(f":{at.port:04X}") and row[3] == "01" for row in _kernels_table("tcp"))


def _kernels_table(name: Transport) -> list[list[str]]:
    return [line.split() for line in Path("/proc/net", name).read_text().splitlines()[1:]]
