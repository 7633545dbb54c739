"""A training whose server is killed again and again, over connections that break, on a disk and beside a database that
fail; and an oracle, who sees whether anything is lost or twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import torch
from trainee import Trainee, Violation, require

import history_database
from crashing_server import CrashingServer
from faulty_proxy import Chance, FaultyProxy
from optimd_service.store.failpoints import POINTS
from torch_replay import LARGE, Task

TASKS = [
    Task("adamw"),
    Task(
        "clipped",
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        max_norm=1.0,
        description={"checkpoint": {"steps": 7, "keep": 2}},
    ),
    Task(
        "large",
        {"name": "adam", "lr": 0.01},
        lambda params: torch.optim.Adam(params, lr=0.01),
        LARGE,
        description={"checkpoint": {"steps": 4, "keep": 1}},
    ),
    Task(
        "by-checkpoint",
        {"name": "rmsprop", "lr": 0.01},
        lambda params: torch.optim.RMSprop(params, lr=0.01),
        description={"durability": "checkpoint", "checkpoint": {"steps": 5}},
    ),
    Task(
        "in-memory",
        {"name": "sgd", "lr": 0.1},
        lambda params: torch.optim.SGD(params, lr=0.1),
        description={"durability": "memory"},
    ),
]
CLIENTS = {"adamw": 2}
"""Of a task, where it has more than one."""
BAD_DISK = "disk.write=eio%0.02;disk.sync=eio%0.03;disk.reserve=enospc%0.05;checkpoint.write=enospc%0.1"


class Chaos:
    """One server, its trainees, and what happens to them.

    Attributes:
      kills: how often the server was killed, from outside or at a failpoint.
      happened: faults by name, and how often each was done.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.kills = 0
        self.happened: Counter[str] = Counter()
        self._seed = seed
        self._dice = random.Random(seed)  # noqa: S311  chance here is to be repeatable, not secret
        self._folder = folder
        self._server = CrashingServer(folder / "data")
        self._quiet = CrashingServer(folder / "quiet")
        self._proxy = FaultyProxy(lambda: self._server.url, Chance(seed))
        self._lives = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for each in (self._server, self._quiet, self._proxy):
                opened.enter_context(each)
            self._trainees = [
                Trainee(task, self._proxy.url, lambda: self._server.url, self._quiet.http) for task in TASKS
            ]
            for trainee in self._trainees:
                trainee.create()
            self._ends = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def life(self) -> None:
        """Train, let something happen, and see what is true then. Raises: Violation."""
        self._lives += 1
        over = threading.Event()
        with ThreadPoolExecutor(16) as pool:
            clients = [
                pool.submit(trainee.train, over, self._dice.getrandbits(32))
                for trainee in self._trainees
                for _ in range(CLIENTS.get(trainee.task.name, 1))
            ]
            try:
                fault = self._dice.choice(self._faults)
                self.happened[fault.__name__.strip("_")] += 1
                fault()
            finally:
                over.set()
                self._await(clients)
        for client in clients:
            client.result()
        for trainee in self._trainees:
            self._check(trainee)

    def said(self) -> str:
        """What has happened so far, in a line."""
        steps = sum(len(trainee.log.steps) for trainee in self._trainees)
        return (
            f"seed {self._seed}: {self._lives} lives, {self.kills} kills, {self._proxy.broken} connections broken, "
            f"{steps} steps; {dict(self.happened)}"
        )

    def output(self) -> str:
        """What the server wrote since it was last started."""
        return self._server.output()

    def _await(self, clients: list[Future[None]]) -> None:
        while not all(client.done() for client in clients):
            self._see_to_it()
            time.sleep(0.02)

    def _check(self, trainee: Trainee) -> None:
        while True:
            try:
                trainee.check()
            except httpx.TransportError:  # a failpoint was reached late
                require(not self._server.lives, "the server lives and does not answer")
                self._see_to_it()
            else:
                return

    def _see_to_it(self) -> None:
        """Start the server again if it died."""
        if not self._server.lives:
            self.kills += 1
            self._server.await_end()
            self._server.failing = ""
            self._server.start()

    @property
    def _faults(self) -> list[Callable[[], None]]:
        killed = [self._killed] * 3
        return [*killed, *[self._killed_at_a_point] * 4, self._disk_fails, self._ended, self._no_database, self._second]

    def _train_for(self, least_s: float, most_s: float) -> None:
        time.sleep(self._dice.uniform(least_s, most_s))

    def _killed(self) -> None:
        self._train_for(0.05, 0.8)
        self._kill()
        self._server.start()

    def _kill(self, failing: str = "") -> None:
        self.kills += 1
        self._server.crash()
        self._server.failing = failing

    def _killed_at_a_point(self) -> None:
        self._train_for(0.05, 0.3)
        points = self._dice.sample(sorted(POINTS), 2)
        self._kill(";".join(f"{point}=kill@{self._dice.randint(1, 30)}" for point in points))
        if self._server.begin():
            deadline = time.monotonic() + 1.5
            while self._server.lives and time.monotonic() < deadline:
                time.sleep(0.02)
        self._see_to_it()

    def _disk_fails(self) -> None:
        self._train_for(0.05, 0.3)
        self._kill(BAD_DISK)
        if self._server.begin():
            self._train_for(0.5, 1.0)
            self._kill()
            self._server.start()
        self._see_to_it()

    def _ended(self) -> None:
        self._train_for(0.05, 0.5)
        os.kill(self._server.pid, signal.SIGTERM)
        self._server.await_end(40)
        require(self._server.code == 0, f"it ended with {self._server.code}")
        self._server.start()

    def _no_database(self) -> None:
        with history_database.away(self._folder / "data" / "history.sqlite3"):
            self._train_for(0.3, 0.8)
            self._kill()
        self._server.start()

    def _second(self) -> None:
        second = CrashingServer(self._folder / "data")
        second._log = self._folder / "second.log"
        require(not second.begin() and second.code == 1, "two servers run on one directory")


__all__ = ["Chaos", "Violation"]
