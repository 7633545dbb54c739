"""The plainest ASGI application, which sends back the body it reads: no optimizer, no history, no checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any

import uvicorn

from cases import Case
from peers.place import PATIENCE_S, Place, served
from peers.together import Step, together


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    body = bytes(case.wire_bytes)
    with served(serve, case) as place:
        yield {"": together([partial(_step, _connected(place), body) for _ in range(case.clients)])}


def _connected(place: Place) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1")
    connection.sock = place.connect()
    return connection


def _step(connection: HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/", body)
    connection.getresponse().read()


def serve(_: Case, place: Place) -> None:
    """Serve the application with what optimd's own server runs on."""
    config = uvicorn.Config(
        echo,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        timeout_keep_alive=PATIENCE_S,
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[place.listen()])


async def echo(
    _: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Read the body, send it back."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": bytes(body)})
