"""A server of one's own, a process with its data in a temporary folder, for as long as a `with` block lasts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from cases import Transport

START_S = 60
STOP_S = 20


class Server(NamedTuple):
    """Where it is reached, and its process."""

    url: str
    pid: int


@contextmanager
def optimd_server(transport: Transport = "tcp", data: Path | None = None, **settings: str) -> Iterator[Server]:
    """Run `optimd-server` with its default settings, whatever the environment says.

    Args:
      data: a folder that outlives it; a temporary one without.
      settings: others than the defaults: `REDIS_URL="…"` sets OPTIMD_REDIS_URL.

    Raises: RuntimeError, with what the server wrote, when it does not start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTIMD_")}
    environment |= {f"OPTIMD_{name}": value for name, value in settings.items()}
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        place = ["--uds", str(folder / "socket")] if transport == "uds" else ["--port", "0"]
        place += ["--data", str(data or folder / "data")]
        command = [str(Path(sys.executable).with_name("optimd-server")), "run", *place]
        log = folder / "log"
        with log.open("w") as lines:
            process = subprocess.Popen(command, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        try:
            yield Server(_url(process, log), process.pid)
        finally:
            _end(process)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """What clients connect to, once the server says that it listens."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        _, said, rest = log.read_text().partition("running on ")
        if said and "(" in rest:
            address = rest.partition(" (")[0]
            return address.replace("unix socket ", "unix:")
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start; it wrote:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
