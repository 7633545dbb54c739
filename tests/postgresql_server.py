"""A real PostgreSQL server of the tests' own, on a Unix socket in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

USER = "optimd"
DEBIANS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
START_S = 30
# It survives its own death, which tests bring about, and need not survive the machine's: what is committed is written,
# and not synced.
SETTINGS = ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=50"]


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(DEBIANS)), os.environ["PATH"]]))
    assert found, "tests of PostgreSQL need it installed: make postgresql"
    return found


def _unprivileged(name: str) -> list[str]:
    """How a program is run that refuses to serve root, and is to end with us even when we are killed."""
    user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig", "QUIT", *user, _program(name)]


class PostgresqlServer:
    """Runs while the context lasts; can be stopped hard, frozen, and started again, with what it had committed."""

    def __enter__(self) -> Self:
        self.folder = Path(mkdtemp(prefix="optimd-postgresql-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        initdb = ["-D", self.folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*_unprivileged("initdb"), *initdb], check=True, stdout=subprocess.DEVNULL)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        options = [part for setting in SETTINGS for part in ("-c", setting)]
        place = ["-D", self.folder / "data", "-k", self.folder]
        deadline = time.monotonic() + START_S
        while True:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen([*_unprivileged("postgres"), *place, *options], stdout=log, stderr=log)
            while self._process.poll() is None:
                if self._answers():
                    return
                time.sleep(0.02)
            # After a kill its children take a moment to notice, and it does not start beside them.
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a crash does, and whatever of it serves connections."""
        children = self._children()
        self._stop(signal.SIGKILL)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Nothing of it answers any more, and no connection breaks; until `thaw`."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints of the rows: a line each, columns parted by a bar."""
        psql = [
            _program("psql"),
            "-X",
            "-q",
            "-A",
            "-t",
            "-h",
            self.folder,
            "-U",
            USER,
            "-d",
            database,
            "-c",
            statement,
        ]
        return subprocess.run(psql, check=True, capture_output=True, text=True).stdout.strip()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def _answers(self) -> bool:
        return subprocess.run([_program("pg_isready"), "-q", "-h", self.folder], check=False).returncode == 0

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in (self._process.pid, *self._children()):
            os.kill(pid, number)

    def _children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        ]

    def _stop(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.wait()
