"""The floor of the bytes: gradients up and weights down through bare sockets, in every way that may be the fastest."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from cases import Case
from peers.place import Place, served
from peers.together import Step, together

KIB = 1 << 10
MIB = 1 << 20
SEND_PIECE = 2 * MIB
RECEIVE_PIECES = {"256 KiB": 256 * KIB, "1 MiB": MIB, "whole": 0}
SOCKET_BUFFERS = {"default": 0, "1 MiB": MIB}
GREETING = struct.Struct("<5Q")


class Stream(NamedTuple):
    """What one connection moves, back and forth: bytes ``start`` to ``stop`` of a client's.

    Attributes:
      piece: most bytes of one receive; 0 for as many as come.   buffer: the sockets' own buffers; 0 for the default.
    """

    client: int
    start: int
    stop: int
    piece: int
    buffer: int

    def connect(self, place: Place) -> socket.socket:
        """A connection whose other end knows what it moves."""
        connection = place.connect()
        connection.sendall(GREETING.pack(*self))
        self.tune(connection)
        return connection

    def tune(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if self.buffer else ():
            connection.setsockopt(socket.SOL_SOCKET, option, self.buffer)

    def send(self, connection: socket.socket, view: memoryview) -> None:
        length = SEND_PIECE if self.piece else len(view)
        for at in range(0, len(view), length):
            connection.sendall(view[at : at + length])

    def receive(self, connection: socket.socket, view: memoryview) -> None:
        """Fill ``view``. Raises: ConnectionError at the end of the stream."""
        while view:
            got = connection.recv_into(view[: self.piece or len(view)])
            if not got:
                raise ConnectionError("the other end has closed")
            view = view[got:]


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    """Yields one step for each combination of streams, receive sizes and socket buffers."""
    grads = [np.full(case.wire_bytes, 1, np.uint8).data for _ in range(case.clients)]
    params = [np.full(case.wire_bytes, 1, np.uint8).data for _ in range(case.clients)]
    pieces = {name: piece for name, piece in RECEIVE_PIECES.items() if piece < case.wire_bytes}
    with served(serve, case) as place:
        ways = itertools.product((1, 2), pieces, SOCKET_BUFFERS)
        yield {
            _name(streams, piece, buffer): together(
                [
                    partial(_exchange, stream.connect(place), stream, grads[stream.client], params[stream.client])
                    for stream in _streams(case, streams, pieces[piece], SOCKET_BUFFERS[buffer])
                ]
            )
            for streams, piece, buffer in ways
        }


def _name(streams: int, piece: str, buffer: str) -> str:
    return f"{streams} stream{'s' * (streams > 1)}, {piece}, {buffer} buffers"


def _streams(case: Case, streams: int, piece: int, buffer: int) -> Iterator[Stream]:
    bounds = [case.wire_bytes * i // streams for i in range(streams + 1)]
    for client, (start, stop) in itertools.product(range(case.clients), itertools.pairwise(bounds)):
        yield Stream(client, start, stop, piece, buffer)


def _exchange(connection: socket.socket, stream: Stream, grads: memoryview, params: memoryview) -> None:
    stream.send(connection, grads[stream.start : stream.stop])
    stream.receive(connection, params[stream.start : stream.stop])


def serve(case: Case, place: Place) -> None:
    """Take what each stream sends, and send as many bytes back, each in a thread of its own."""
    memory = [np.full(case.wire_bytes, 1, np.uint8).data for _ in range(case.clients)]
    with place.listen() as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_answer, args=(connection, memory)).start()


def _answer(connection: socket.socket, memory: list[memoryview]) -> None:
    stream = Stream(*GREETING.unpack(connection.recv(GREETING.size, socket.MSG_WAITALL)))
    stream.tune(connection)
    view = memory[stream.client][stream.start : stream.stop]
    with connection:
        while True:
            stream.receive(connection, view)
            stream.send(connection, view)
