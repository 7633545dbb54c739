"""Where servers are forked that tests kill by the dozen: each starts without the seconds that importing torch takes.

    python server_nursery.py

Takes requests as lines of JSON, and answers each with a line: `{"environment": …, "arguments": …, "log": …,
"clock_s": …}` with the number of a new process, `{"ended": pid}` with how that one ended, as subprocess has it, or null
while it runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any, NoReturn

from optimd_service import cli, types
from optimd_service.store import failpoints


def set_clock(clock_s: float) -> None:
    """Let the service take it for so many seconds later than it is."""
    time_ns = time.time_ns

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # a plain one, as if it were
            return datetime.now(tz) + timedelta(seconds=clock_s)

    types.datetime = Shifted  # type: ignore[misc]  # where the service asks what time it is
    time.time_ns = lambda: time_ns() + int(clock_s * 1e9)


def serve(environment: dict[str, str], arguments: list[str], log: str, clock_s: float) -> NoReturn:
    """Be `optimd-server`, from here on."""
    set_clock(clock_s)
    os.environ.clear()
    os.environ.update(environment)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    os.close(0)
    failpoints._SET = failpoints.parse(
        environment.get("OPTIMD_FAILPOINTS", ""), int(environment.get("OPTIMD_FAILPOINTS_SEED", "0"))
    )
    code: Any = 1
    try:
        cli.app(arguments)
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        os._exit(code or 0)


def answer(request: dict[str, Any]) -> int | None:
    if "ended" in request:
        pid, status = os.waitpid(request["ended"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    return os.fork() or serve(**request)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
