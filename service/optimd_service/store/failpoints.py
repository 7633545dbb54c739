"""Named places where a test makes the server fail, off unless ``OPTIMD_FAILPOINTS`` sets them.

    OPTIMD_FAILPOINTS="journal.before_sync=kill@3;disk.write=enospc%0.01" OPTIMD_FAILPOINTS_SEED=7

Each is ``name=action`` and perhaps ``@n``, at the n-th time alone, or ``%p``, each time with probability p. Actions:

    kill        SIGKILL to the process itself
    exit        end at once, without any clean-up
    enospc eio  the call fails as the disk would make it fail
    memory      there is no memory for the call
    sleep:MS    wait so many milliseconds
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

POINTS: Mapping[str, str] = {
    "session.received": "a push has arrived whole, nothing was done with it",
    "session.before_update": "gradients are judged, no weight has changed; where steps are journaled",
    "session.mid_update": "weights and moments are written, nothing says that they were; where steps are journaled",
    "session.replay": "a record is about to be done again",
    "session.before_publish": "a commit is on disk, in memory stands the state before it",
    "session.after_commit": "a step is committed, history was not told of it",
    "session.before_reply": "all of a push is done but its reply",
    "disk.reserve": "room in a file is about to be taken",
    "disk.write": "bytes are about to be written, of whatever kind",
    "disk.sync": "the disk is about to be asked to sync a file",
    "disk.cut": "a file is about to be made shorter",
    "journal.mid_payload": "a piece of a large payload is about to be written",
    "journal.before_meta": "a large payload is written, nothing says yet what it is",
    "journal.before_head": "all of a large record is written but its head",
    "journal.before_write": "a small record is about to be written, all at once",
    "journal.before_sync": "a record is written and not synced",
    "journal.after_sync": "a record is on disk, nobody knows of it yet",
    "journal.after_mark": "a record is on disk and marked as such",
    "journal.before_segment": "a new segment is about to be written",
    "journal.before_rename": "a new segment is written under another name",
    "journal.before_unlink": "a segment behind a checkpoint is about to be removed",
    "checkpoint.write": "a block of a checkpoint is about to be written",
    "checkpoint.before_sync": "a checkpoint is written under another name and not synced",
    "checkpoint.before_rename": "a checkpoint is synced under another name",
    "checkpoint.before_directory_sync": "a checkpoint has its name, which may not be on disk yet",
    "checkpoint.after_directory_sync": "a checkpoint is on disk, nobody knows of it yet",
    "checkpoint.before_unlink": "an old checkpoint is about to be removed",
    "redis.before_commit": "a commit is about to be sent to Redis",
    "redis.after_commit": "Redis has committed, nobody knows of it yet",
}
"""Every point there is, and where it lies."""

_SPEC = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>kill|exit|enospc|eio|memory|sleep:(?P<ms>\d+))(?:@(?P<nth>\d+)|%(?P<chance>[\d.]+))?"
)


@dataclass(frozen=True)
class Failpoint:
    """What happens at one point.

    Attributes:
      act: does it, or raises OSError or MemoryError.
      nth: the only time at which it happens, from 1; None for every time.
      chance: with which it happens.
    """

    act: Callable[[], object]
    nth: int | None
    chance: float
    dice: random.Random
    times: count[int] = field(default_factory=lambda: count(1))

    def reached(self) -> None:
        if self.nth in {None, next(self.times)} and self.dice.random() < self.chance:
            self.act()


def parse(text: str, seed: int = 0) -> dict[str, Failpoint]:
    """The points that ``text`` sets. Raises: ValueError, for one that is not there or an action that is not known."""
    points = {}
    for spec in filter(None, text.split(";")):
        match = _SPEC.fullmatch(spec.strip())
        if not match or match["name"] not in POINTS:
            raise ValueError(f"OPTIMD_FAILPOINTS: {spec!r} is not NAME=ACTION[@N|%P] of a point in store/failpoints.py")
        nth, chance = match["nth"], match["chance"]
        act = _action(match["action"].split(":")[0], int(match["ms"] or 0))
        dice = random.Random(f"{seed} {match['name']}")  # noqa: S311  chance here is to be repeatable, not secret
        points[match["name"]] = Failpoint(act, int(nth) if nth else None, float(chance or 1), dice)
    return points


def _action(name: str, ms: int) -> Callable[[], object]:
    def fail() -> None:
        if name == "memory":
            raise MemoryError("failpoint")
        code = getattr(errno, name.upper())
        raise OSError(code, f"{os.strerror(code)} (failpoint)")

    actions: Mapping[str, Callable[[], object]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(1),
        "sleep": lambda: time.sleep(ms / 1000),
    }
    return actions.get(name, fail)


_SET = parse(os.environ.get("OPTIMD_FAILPOINTS", ""), int(os.environ.get("OPTIMD_FAILPOINTS_SEED", "0")))


def failpoint(name: str) -> None:
    """Fail here, if that is what the environment says. Raises: OSError, MemoryError."""
    point = _SET.get(name)
    if point is not None:
        point.reached()
