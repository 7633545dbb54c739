"""The transport made for bodies the size of a model: kept-alive HTTP/1.1 connections to one server."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from optimd._connection import ClosedUnanswered, Connection
from optimd._exchange import Reply, Request
from optimd._opening import opened
from optimd._settings import Settings
from optimd._stripes import SideBySide
from optimd.errors import ConnectionFailed, TimedOut


class TensorTransport:
    """Exchanges requests with one server; safe to use from several threads, each exchange on its own connection."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.http_url)
        self._settings = settings
        self._tls = httpx.create_ssl_context() if parts.scheme == "https" else None
        self._prefix = parts.path
        fixed = {"host": parts.netloc.rpartition("@")[2]} | settings.headers()
        self._fixed = _lines(fixed)
        self._idle: deque[Connection] = deque()
        self._pid = os.getpid()
        self._side_by_side = SideBySide(self._open, self._exchange_on, self._keep)

    def exchange(self, request: Request) -> Reply:
        """Send one request and read its reply.

        The server may have closed a kept connection meanwhile. When that shows before a byte of the reply, a
        repeatable request goes out once more, on a new connection.

        Raises: NotConnected, ConnectionFailed, TimedOut, MalformedReply.
        """
        if request.cut_at is not None and self.cuts_bodies:
            return self._side_by_side.exchange(request, request.cut_at)
        kept = self._kept()
        if kept is not None:
            try:
                return self._kept_after(kept, request)
            except ClosedUnanswered:
                if not request.repeatable:
                    raise
        return self._kept_after(self._connect(), request)

    @property
    def cuts_bodies(self) -> bool:
        """Whether large bodies travel over two connections."""
        return self._settings.connections > 1 and self._tls is None

    def close(self) -> None:
        """Close the connections that lie idle."""
        self._side_by_side.close()
        while self._idle:
            self._idle.pop().close()

    def _kept_after(self, connection: Connection, request: Request) -> Reply:
        reply = self._exchange_on(connection, request)
        self._keep(connection)
        return reply

    def _exchange_on(self, connection: Connection, request: Request) -> Reply:
        timeout_s = self._settings.timeout_for(request.body_bytes) + request.wait_s
        try:
            return connection.exchange(self._head(request), request, timeout_s)
        except (TimeoutError, BlockingIOError) as error:
            connection.close()
            raise TimedOut(f"{self._settings.url} stayed silent for {timeout_s:.0f} s.") from error
        except OSError as error:
            connection.close()
            reason = error.strerror or error
            raise ConnectionFailed(f"The connection to {self._settings.url} broke: {reason}.") from error
        except BaseException:
            connection.close()
            raise

    def _keep(self, connection: Connection) -> None:
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def _head(self, request: Request) -> bytes:
        own = _lines(request.headers)
        if request.body or request.method in {"POST", "PUT", "PATCH"}:
            own += f"content-length: {request.body_bytes}\r\n"
        return f"{request.method} {self._prefix}{request.target} HTTP/1.1\r\n{self._fixed}{own}\r\n".encode("ascii")

    def _open(self) -> Connection:
        return self._kept() or self._connect()

    def _connect(self) -> Connection:
        try:
            return Connection(opened(self._settings, self._tls))
        except OSError as error:
            raise self._settings.not_connected(error.strerror or str(error)) from error

    def _kept(self) -> Connection | None:
        if self._pid != os.getpid():
            # A forked child that wrote to its parent's sockets would mix two streams of bytes.
            self._idle, self._pid = deque(), os.getpid()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took the last one
                return None
            if connection.seems_open():
                return connection
            connection.close()
        return None


def _lines(headers: Mapping[str, str]) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header cannot hold a line break")
    return lines
