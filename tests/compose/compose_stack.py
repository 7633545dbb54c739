"""The containers of docker-compose.yml, brought up and down by tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx

READY_S = 120
COMMAND_S = 120
# A name of their own: volumes that somebody trains on are neither used nor removed.
PROJECT = "optimd-test"
# Every process in the container but its first, which ends with them, as after a crash.
KILL_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"


class Stack:
    """Up while the context lasts, on empty volumes and a free port; leaves neither containers nor volumes.

    Args:
      command: `docker compose`, or a program that takes the same arguments.
      folder: of docker-compose.yml.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command = [*command, "-p", PROJECT]
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{self._address}"

    def __enter__(self) -> Self:
        self._compose("down", "-v", checked=False)  # what a run that was killed has left
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._compose("down", "-v")

    def restart(self, service: str) -> None:
        """Stop and start a container, as an operator does."""
        self._compose("restart", service)

    def kill_server(self) -> None:
        """End the server without a word, and leave it to its restart policy."""
        self._compose("exec", "-T", "optimd", "python", "-c", KILL_ALL, checked=False)

    def recreate(self) -> None:
        """Remove every container and make new ones on the same volumes, as after an upgrade."""
        self._compose("down")
        self._up()

    def logs(self) -> str:
        """What the server has written so far."""
        return self._compose("logs", "optimd", checked=False)

    def _up(self) -> None:
        self._compose("up", "-d", "--no-build")
        deadline = time.monotonic() + READY_S
        while not self._ready():
            assert time.monotonic() < deadline, f"the stack is not ready after {READY_S} s:\n{self.logs()}"
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _compose(self, *arguments: str, checked: bool = True) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self._folder,
            env={**os.environ, "OPTIMD_PUBLISH": self._address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert not checked or done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout
