"""What stands between a client and Redis, and breaks connections at chosen moments."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self


class RedisProxy:
    """Forwards connections to a Unix socket, from one of its own, while the context lasts.

    Attributes:
      losing: replies that hold these bytes do not arrive: the connection breaks in their place.
      times: how many more of them are lost.
      on_loss: done before the connection breaks.
      room: bytes towards Redis after which every connection breaks; None for as many as come.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._ends = ExitStack()
        self.losing, self.times = b"", 0
        self.on_loss: Callable[[], object] = lambda: None
        self.room: int | None = None

    def __enter__(self) -> Self:
        folder = self._ends.enter_context(TemporaryDirectory(prefix="optimd-proxy-"))
        self.url = f"unix://{folder}/s"
        self._listener = self._ends.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(f"{folder}/s")
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._ends.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                redis = socket.socket(socket.AF_UNIX)
                redis.connect(str(self._target))
                for pump in (self._forth, self._back):
                    threading.Thread(target=pump, args=(client, redis), daemon=True).start()

    def _forth(self, client: socket.socket, redis: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.room is not None:
                    data = data[: self.room]
                    self.room -= len(data)
                redis.sendall(data)
                if self.room == 0:
                    break
        _break(client, redis)

    def _back(self, client: socket.socket, redis: socket.socket) -> None:
        with suppress(OSError):
            while data := redis.recv(65536):
                if self.times and self.losing in data:
                    self.times -= 1
                    self.on_loss()
                    break
                client.sendall(data)
        _break(client, redis)


def _break(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
