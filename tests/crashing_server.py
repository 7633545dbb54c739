"""A server that tests kill and start again, by the dozen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

import httpx

import history_database
from reaching import http_client
from server_process import START_S, STOP_S, ServerProcess, environment

NURSERY = Path(__file__).with_name("server_nursery.py")
_LISTENING = re.compile(r"running on (http://\S+)")


class Nursery:
    """The process that forks servers; one for a test run."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: Any = subprocess.Popen([sys.executable, str(NURSERY)], **pipes)
        self._asking = threading.Lock()
        history_database.at_the_end.callback(self._process.kill)

    def ask(self, **request: Any) -> int | None:
        with self._asking:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: int | None = json.loads(self._process.stdout.readline())
        return answer


nursery = cache(Nursery)


class CrashingServer(ServerProcess):
    """Serves on a port, and may be killed or started again while the context lasts.

    Attributes:
      http: a client of it.
      failing: what OPTIMD_FAILPOINTS sets when it is started next.
      clock_s: by how much its clock is ahead then.
    """

    http: httpx.Client

    def __init__(self, data: Path, **settings: str) -> None:
        super().__init__(data, **settings)
        self._data = data
        self._settings = {name: value for name, value in self._environment.items() if name.startswith("OPTIMD_")}
        self.failing = ""
        self.clock_s = 0.0
        self.code: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.lives:
            self.stop()

    def start(self) -> None:
        """Raises: AssertionError, where it ends before it listens."""
        assert self.begin(), f"the server did not start:\n{self.output()}"

    def begin(self) -> bool:
        """Start it; False where it ended before it could listen."""
        settings = self._settings | {"OPTIMD_FAILPOINTS": self.failing}
        own = environment() | settings
        arguments = ["run", "--port", "0", "--data", str(self._data)]
        self._log.unlink(missing_ok=True)
        self.code = None
        self.pid = nursery().ask(environment=own, arguments=arguments, log=str(self._log), clock_s=self.clock_s) or 0
        found = wait_for(lambda: self._found() or not self.lives, START_S)
        if isinstance(found, re.Match):
            self.url = found[1]
            self.http = http_client(self.url)
            self.running.append(self)
            return True
        self._gone()
        return False

    def _found(self) -> re.Match[str] | None:
        return _LISTENING.search(self.output())

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def lives(self) -> bool:
        if self.code is None:
            self.code = nursery().ask(ended=self.pid)
        return self.code is None

    def crash(self) -> None:
        """It is killed, and gets no chance to say anything."""
        if self.lives:
            os.kill(self.pid, signal.SIGKILL)
        self.await_end()

    def await_end(self, patience_s: float = STOP_S) -> None:
        """Wait until it has ended. Raises: AssertionError, where it does not."""
        ended = wait_for(lambda: not self.lives, patience_s)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        assert ended, f"the server did not end:\n{self.output()}"
        self._gone()

    def stop(self) -> None:
        """End it as a supervisor does, and see that it ends well."""
        os.kill(self.pid, signal.SIGTERM)
        self.await_end(3 * STOP_S)
        assert self.code == 0, f"the server ended with {self.code}:\n{self.output()}"

    def start_again(self, failing: str = "") -> None:
        """After a crash, or in place of one."""
        self.crash()
        self.failing = failing
        self.start()

    def _gone(self) -> None:
        if self in self.running:
            self.running.remove(self)
            self.http.close()


def wait_for(found: Callable[[], Any], patience_s: float) -> Any:
    """What ``found`` gives once it gives something; None if it has not by then."""
    deadline = time.monotonic() + patience_s
    while not (something := found()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return something
