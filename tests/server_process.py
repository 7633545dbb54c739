"""A real `optimd-server run`, started and stopped by tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar, Self

import history_database
import reaching

COMMAND = Path(sys.executable).with_name("optimd-server")
POSING = [sys.executable, str(Path(__file__).with_name("posing_server.py"))]
START_S = 60
STOP_S = 10
_LISTENING = re.compile(r"running on (http://\S+|unix socket)")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with these of the server's settings and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPTIMD_")}
    return {**inherited, **{f"OPTIMD_{name}": value for name, value in settings.items()}}


class ServerProcess:
    """Serves while the context lasts, on a free port or `<data>.sock`; must end by itself and well when asked to.

    Args:
      data: its data directory; beside it, in `<data>.log`, is what it writes.
      settings: `IDLE_TIMEOUT_S="1"` sets OPTIMD_IDLE_TIMEOUT_S.
    """

    running: ClassVar[list[ServerProcess]] = []

    def __init__(self, data: Path, **settings: str) -> None:
        self._log = data.with_suffix(".log")
        self._socket = data.with_suffix(".sock") if reaching.transport == "unix" else None
        place = ["--port", "0"] if self._socket is None else ["--uds", str(self._socket)]
        self._command = [*self._program(), "run", *place, "--data", str(data)]
        if history_database.kind != "sqlite" and "DATABASE_URL" not in settings:
            settings["DATABASE_URL"] = history_database.migrated_url(data / "history.sqlite3")
        self._environment = environment(**settings)
        self.url = ""

    @staticmethod
    def _program() -> list[str]:
        return POSING if reaching.device == "posing" else [str(COMMAND)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        started = self._listening.wait(START_S) and self.url
        if not started:
            self._process.kill()
        assert started, f"the server did not start:\n{self.output()}"
        self.running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.running.remove(self)
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the server did not end within {STOP_S} s of SIGTERM:\n{self.output()}") from None
        self._reader.join()
        assert code == 0, f"the server ended with {code}:\n{self.output()}"
        assert "Traceback" not in self.output(), self.output()

    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, self._log.open("w", buffering=1) as log:
            for line in lines:
                log.write(line)
                if found := _LISTENING.search(line):
                    self.url = found[1] if self._socket is None else f"{reaching.UNIX}{self._socket}"
                    self._listening.set()
        self._listening.set()


class PosingServer(ServerProcess):
    """One that finds a GPU, where there is none."""

    @staticmethod
    def _program() -> list[str]:
        return POSING
