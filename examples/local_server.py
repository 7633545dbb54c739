"""A server of one's own, for as long as a `with` block lasts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from optimd import Client

START_S = 60
STOP_S = 10


@contextmanager
def local_server() -> Iterator[str]:
    """Run `optimd-server` as a process of its own on a free port, its data in a temporary folder.

    Yields: the server's address, once it is ready.

    Raises: RuntimeError, with what the server wrote, when it does not start.
    """
    command = Path(sys.executable).with_name("optimd-server")
    # Settings that somebody keeps for another server would move this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPTIMD_")}
    with TemporaryDirectory(prefix="optimd-") as folder:
        log = Path(folder, "server.log")
        with log.open("w") as lines:
            process = subprocess.Popen(  # noqa: S603 - the command beside this interpreter, and no shell
                [command, "run", "--port", "0", "--data", Path(folder, "data")],
                env=environment,
                stdout=lines,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _ready(process, log)
        finally:
            _end(process)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        if address := re.search(r"running on (http://\S+)", log.read_text()):
            with Client(address[1]) as client:
                client.health()
            return address[1]
        time.sleep(0.05)
    raise RuntimeError(f"The server did not start. It wrote:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
