"""Keeping the thread that moves a body near its other end, where both ends are in one machine.

A byte is written by the one and read by the other: on one core it is still in that core's cache. Of a body that two
connections carry, each part is then moved by a core of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from optimd_service.session import cores

_INCOMING_CPU: int | None = getattr(socket, "SO_INCOMING_CPU", None)


def near_other_end(
    connection: socket.socket, move: Callable[[Iterator[memoryview]], None], places: Iterator[memoryview]
) -> None:
    """``move(places)``, where the calling thread follows the other end of a TCP connection from core to core."""
    if _INCOMING_CPU is None:
        move(places)
        return
    with cores.led() as lead:
        move(_followed(places, lambda: lead(connection.getsockopt(socket.SOL_SOCKET, _INCOMING_CPU))))


def _followed(places: Iterator[memoryview], follow: Callable[[], None]) -> Iterator[memoryview]:
    for place in places:
        follow()
        yield place
