"""Contenders measured in turns: a step of each, round after round, so that a noisy minute is everybody's."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import Any, Self, TypeAlias

import peer_process
from cases import Case
from figures import progress
from peer_process import Absent
from peers.place import SPAWN

PAUSE_S = 0.02
"""Between turns: torch's threads spin for a while when they have nothing left to do, on cores the next one needs."""
PATIENCE_S = 600
STOP_S = 30
REASON_LENGTH = 80
LAST_WORDS = 2_000
"""Characters of a failed peer's log to show."""
Samples: TypeAlias = dict[str, list[float]]
"""Row → seconds of each step."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A row, or as many as the peer has ways to take a step.

    Attributes:
      name: of the row.   peer: module in `peers`.   steps: in each turn.
      rounds: that it takes part in, where its steps are so slow that all would take too long; None for all.
    """

    name: str
    peer: str
    steps: int = 1
    rounds: int | None = None


@dataclass(slots=True)
class Block:
    """Rounds that the same contenders took part in.

    Attributes:
      absent: row → why it has no samples.
    """

    samples: Samples = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def take_turns(case: Case, hosts: Sequence[Contender], guests: Sequence[Contender], rounds: int) -> list[Block]:
    """Let all hosts and one guest take turns, ``rounds`` times; then all hosts and the next guest.

    Guests come one after the other because the memory of all of them may be more than there is.
    """
    started, blocks = Block(), []
    with contextlib.ExitStack() as running:
        resident = [running.enter_context(_Process(host, case, started)) for host in hosts]
        for guest in progress(guests or [None], "peers"):
            block = Block(absent=dict(started.absent))
            with _Process(guest, case, block) if guest else contextlib.nullcontext() as process:
                taking_part = [*resident, process] if process else resident
                for number in range(rounds):
                    for each in taking_part:
                        each.turn(number, block)
            blocks.append(block)
    return blocks


class _Process:
    """A contender's process, from the context's beginning to its end."""

    def __init__(self, contender: Contender, case: Case, block: Block) -> None:
        self._contender, self._case, self._block = contender, case, block
        self._ways: list[str] = []

    def __enter__(self) -> Self:
        self._log = NamedTemporaryFile("r", prefix="bench-")
        self._pipe, theirs = SPAWN.Pipe()
        # Not a daemon: it has a server's process of its own.
        what = (self._contender.peer, self._case, theirs, self._log.name)
        self._process = SPAWN.Process(target=peer_process.run, args=what)
        self._process.start()
        theirs.close()
        self._ways = self._receive(self._contender.name, self._block) or []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(STOP_S)
        self._process.kill()
        self._log.close()

    def turn(self, number: int, block: Block) -> None:
        """Take the steps of round ``number``, each way of the contender's in turn."""
        if self._contender.rounds is not None and number >= self._contender.rounds:
            return
        for way in self._ways[:]:
            time.sleep(PAUSE_S)
            self._pipe.send((way, self._contender.steps))
            row = f"{self._contender.name}, {way}" if way else self._contender.name
            taken = self._receive(row, block)
            if taken is None:
                self._ways = []
                return
            block.samples.setdefault(row, []).extend(taken)

    def _receive(self, row: str, block: Block) -> Any:
        """What the process says; None, with the reason noted, when it has failed."""
        try:
            answer = self._pipe.recv() if self._pipe.poll(PATIENCE_S) else Absent(f"failed: silent for {PATIENCE_S} s")
        except EOFError:
            answer = Absent("failed: its process ended")
        if not isinstance(answer, Absent):
            return answer
        block.absent[row] = answer.splitlines()[0][:REASON_LENGTH]
        if answer.startswith("failed"):
            sys.stderr.write(f"{row}: {answer}\n{self._log.read()[-LAST_WORDS:]}\n")
        return None
