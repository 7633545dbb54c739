"""Exchanges over httpx: for asyncio, for proxies, and for transports that the caller brings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from optimd._exchange import Intake, Reply, Request
from optimd._settings import Settings
from optimd.errors import ConnectionFailed, MalformedReply, OptimdError, TimedOut

_JOINED_BYTES = 64 * 2**10
# httpx moves the rest of a buffer after every partial send: bytes of n would cost about n²/2k of copying.
_PIECE_BYTES = 2**20


class HttpxTransport:
    """Blocking exchanges over an `httpx.Client`."""

    cuts_bodies = False

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None = None) -> None:
        self._settings = settings
        self._client = httpx.Client(headers=settings.headers(), transport=transport)

    def exchange(self, request: Request) -> Reply:
        content = _joined(request) if request.body_bytes <= _JOINED_BYTES else _pieces(request)
        arguments = _arguments(request, self._settings)
        with _translated(self._settings), self._client.stream(**arguments, content=content) as response:
            intake = Intake(request, response.status_code, dict(response.headers))
            for piece in response.iter_bytes():
                intake.write(piece)
            return intake.reply()

    def close(self) -> None:
        self._client.close()


class AsyncHttpxTransport:
    """Awaited exchanges over an `httpx.AsyncClient`."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        if transport is None and settings.socket_path is not None:
            transport = httpx.AsyncHTTPTransport(uds=settings.socket_path)
        self._client = httpx.AsyncClient(headers=settings.headers(), transport=transport)

    async def exchange(self, request: Request) -> Reply:
        content = _joined(request) if request.body_bytes <= _JOINED_BYTES else _async_pieces(request)
        arguments = _arguments(request, self._settings)
        with _translated(self._settings):
            async with self._client.stream(**arguments, content=content) as response:
                intake = Intake(request, response.status_code, dict(response.headers))
                async for piece in response.aiter_bytes():
                    intake.write(piece)
                return intake.reply()

    async def aclose(self) -> None:
        await self._client.aclose()


def _arguments(request: Request, settings: Settings) -> dict[str, Any]:
    headers = dict(request.headers)
    if request.body or request.method in {"POST", "PUT", "PATCH"}:
        headers["content-length"] = str(request.body_bytes)
    timeout_s = settings.timeout_for(request.body_bytes) + request.wait_s
    url = settings.http_url + request.target
    return {"method": request.method, "url": url, "headers": headers, "timeout": timeout_s}


def _joined(request: Request) -> bytes | None:
    return b"".join(request.buffers()) if request.body else None


def _pieces(request: Request) -> Iterator[bytes]:
    for buffer in request.buffers():
        for start in range(0, buffer.nbytes, _PIECE_BYTES):
            yield bytes(buffer[start : start + _PIECE_BYTES])


async def _async_pieces(request: Request) -> AsyncIterator[bytes]:
    for piece in _pieces(request):
        yield piece


@contextmanager
def _translated(settings: Settings) -> Iterator[None]:
    try:
        yield
    except httpx.RequestError as error:
        raise translate(error, settings) from error


def translate(error: httpx.RequestError, settings: Settings) -> OptimdError:
    """The error of ours that stands for one of httpx."""
    url, reason = settings.url, str(error) or type(error).__name__
    match error:
        case (
            httpx.ConnectError()
            | httpx.ConnectTimeout()
            | httpx.PoolTimeout()
            | httpx.ProxyError()
            | httpx.UnsupportedProtocol()
        ):
            return settings.not_connected(reason)
        case httpx.TimeoutException():
            return TimedOut(f"{url} stayed silent for too long: {reason}.")
        case httpx.DecodingError() | httpx.TooManyRedirects():
            return MalformedReply(f"The reply of {url} cannot be read: {reason}.")
        case _:
            return ConnectionFailed(f"The connection to {url} broke: {reason}.")
