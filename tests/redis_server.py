"""A real Redis server of the tests' own, on a Unix socket in a folder of its own, and on a port where one is set."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from redis import Redis, exceptions

START_S = 30
# Acknowledged means written and synced.
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RedisServer:
    """Runs while the context lasts; can be killed and started again, with what it has on disk or with nothing.

    Args:
      settings: redis.conf's, with `_` for `-`; `port`, for one that listens on 127.0.0.1 too.
      secret: what clients must know.

    Attributes:
      settings: under their own names.
    """

    def __init__(self, *, secret: str | None = None, **settings: str) -> None:
        self._secret = secret
        self.settings = {name.replace("_", "-"): value for name, value in settings.items()}

    def __enter__(self) -> Self:
        self.folder = Path(mkdtemp(prefix="optimd-redis-"))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.kill()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        credentials = "" if self._secret is None else f":{self._secret}@"
        return f"unix://{credentials}{self.folder}/redis.sock"

    @property
    def client(self) -> Redis:
        return Redis.from_url(self.url)

    def expiries(self) -> dict[str, int]:
        """Every key, and in how many seconds it expires; -1 for never."""
        with self.client as client:
            return {key.decode(): client.ttl(key) for key in sorted(client.scan_iter())}

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "tests of Redis need it installed: make redis"
        settings = {"port": "0", "save": "", "dir": str(self.folder), "unixsocket": f"{self.folder}/redis.sock"}
        if self._secret is not None:
            settings["requirepass"] = self._secret
        options = [part for name, value in (settings | self.settings).items() for part in (f"--{name}", value)]
        # Ends with us, even when we are killed.
        command = ["setpriv", "--pdeathsig", "KILL", program, *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Lose what is on disk; while it does not run."""
        shutil.rmtree(self.folder / "appendonlydir")

    def freeze(self) -> None:
        """It answers nothing any more, and no connection breaks; until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except exceptions.ConnectionError:
            return False
