"""Upgrades that are killed in the middle; run as a program, which loads once and forks for each of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from typing import Any

from sqlalchemy import Engine, event

from optimd_service.history import upgrade


def at_every_statement(url: str) -> Iterator[int]:
    """Upgrade, killed before its first statement, its second, and so on until it ends by itself; yields exit codes."""
    program = [sys.executable, __file__, url]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as upgrades:
        assert upgrades.stdin is not None
        assert upgrades.stdout is not None
        for n in count(1):
            print(n, file=upgrades.stdin, flush=True)
            yield int(upgrades.stdout.readline())


def _upgrade_killed_before(statement: int, url: str) -> None:
    left = iter(range(1, statement))

    def before(*_: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", before)
    upgrade(url)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _upgrade_killed_before(int(line), sys.argv[1])
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
