"""Where a peer's server listens, and a process for it to run in."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cases import Case

START_S = 60
PATIENCE_S = 600
"""How long a connection may lie idle while others take their turns."""
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for what belongs to one server, and the address that it listens on.

    Attributes:
      path: of the Unix socket, or None.   port: on the loopback address, when there is no path.
    """

    folder: Path
    path: Path | None
    port: int

    def listen(self) -> socket.socket:
        """A socket that listens there, whether or not somebody has before."""
        if self.path is None:
            return socket.create_server(("127.0.0.1", self.port))
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(self.path))
        server.listen()
        return server

    def connect(self) -> socket.socket:
        """A connection, as soon as somebody listens."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self._connect()
            except (ConnectionRefusedError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _connect(self) -> socket.socket:
        if self.path is None:
            connection = socket.create_connection(("127.0.0.1", self.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        return connection


@contextmanager
def served(serve: Callable[[Case, Place], None], case: Case) -> Iterator[Place]:
    """Run ``serve(case, place)`` in a process of its own while the context lasts."""
    with TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder, "socket") if case.transport == "uds" else None
        place = Place(Path(folder), path, _free_port())
        process = SPAWN.Process(target=_with_its_threads, args=(serve, case, place), daemon=True)
        process.start()
        try:
            yield place
        finally:
            process.kill()
            process.join()


def _with_its_threads(serve: Callable[[Case, Place], None], case: Case, place: Place) -> None:
    torch.set_num_threads(case.server_threads)
    serve(case, place)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
