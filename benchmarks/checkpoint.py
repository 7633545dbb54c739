"""The longest wait of a training that goes on while its session is written to a checkpoint.

    python benchmarks/checkpoint.py [--parameters N] [--steps N] [--rounds N] [--folder PATH]

A step here is what a server does of one, without HTTP: gradients of every parameter arrive through a socket, AdamW
steps as a session does, the weights leave through the socket. Three kinds of runs take turns: without a checkpoint;
with one that begins at the first step's commit, where updates wait for the disk; and with memory to spare for what is
not on disk yet. Beside them, what the disk takes to write and sync as many bytes of zeroes, and a load of the
checkpoint beside a plain read of its file, both past the page cache.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from figures import milliseconds, progress, show, write
from optimd_service.session.arithmetic import Lane
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.description import read_description
from optimd_service.session.plan import Plan
from optimd_service.session.updating import update_groups_
from optimd_service.store.checkpoint import BLOCK, file_name
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.store.contract import Working
from optimd_service.store.device import Budget
from optimd_service.store.disk import File, aligned
from optimd_service.types import Version

WAYS = {"no checkpoint": None, "waiting for the disk": 0, "memory to spare": 2**63}
"""How a run goes → bytes that may be spared for its checkpoint; None: it has none."""

AT_ONCE = 2**20
SHOWN = ("step_s", "longest_s", "checkpoint_s", "wait_s")


class Run(NamedTuple):
    """Seconds of each step; of the longest wait of an update for the checkpoint; of the checkpoint."""

    steps_s: list[float]
    wait_s: float = 0.0
    checkpoint_s: float = 0.0


class Session:
    """An AdamW session without a server, and a client at the other end of a socket."""

    def __init__(self, numel: int, place: Lane) -> None:
        description = {"optimizer": {"name": "adamw"}, "tensors": [{"name": "w", "shape": [numel]}]}
        self._plan: Plan = Blueprint.draw(read_description(description), None).plan
        state = {name: torch.zeros(size.numel, dtype=size.dtype) for name, size in self._plan.buffers.items()}
        self.working = Working(torch.randn(numel), state, 0, set(), {})
        self._grads = torch.zeros(numel)
        self._place = place
        self._here, self._there = socket.socketpair()
        self._client = ThreadPoolExecutor(1)

    def receive(self) -> None:
        sending = self._client.submit(send, self._there, self._grads.nbytes)
        fill(self._here, bytes_of(self._grads))
        sending.result()

    def update(self) -> None:
        update_groups_(self.working, self._grads, self._plan, self._plan.settings.resolved, self._place)

    def reply(self) -> None:
        pulling = self._client.submit(drop, self._there, self._grads.nbytes)
        self._here.sendall(bytes_of(self.working.params))
        pulling.result()


def bytes_of(flat: torch.Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def fill(source: socket.socket, place: memoryview) -> None:
    while place:
        place = place[source.recv_into(place) :]


def send(to: socket.socket, nbytes: int) -> None:
    """Gradients that are all the same, and take no memory of the client's."""
    piece = memoryview(b"\x01\x00\x00\x30" * (AT_ONCE // 4))
    for at in range(0, nbytes, AT_ONCE):
        to.sendall(piece[: nbytes - at])


def drop(source: socket.socket, nbytes: int) -> None:
    place = memoryview(bytearray(AT_ONCE))
    for at in range(0, nbytes, AT_ONCE):
        fill(source, place[: nbytes - at])


def run(session: Session, folder: Path, spare: int | None, steps: int) -> Run:
    """Step so many times, with a checkpoint from the first step's commit on if ``spare`` says how much it may copy."""
    checkpoints, saving = Checkpoints(folder, Budget(spare or 0)), None
    steps_s, waits_s, took_s = [], [0.0], 0.0
    with ThreadPoolExecutor(1) as writer:
        for number in range(steps):
            began = time.perf_counter()
            session.receive()
            wanted = time.perf_counter()
            if saving:
                saving.settle()
                waits_s.append(time.perf_counter() - wanted)
            session.update()
            if spare is not None and number == 0:
                saving = checkpoints.save(1, Version(1, 0), session.working, {}, {})
                timed = writer.submit(seconds, saving.run)
            session.reply()
            steps_s.append(time.perf_counter() - began)
        if saving:
            took_s = timed.result()
    return Run(steps_s, max(waits_s), took_s)


def seconds(function: object) -> float:
    began = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - began


def disk_s(path: Path, nbytes: int) -> float:
    """Seconds to write and sync so many bytes of zeroes past the page cache."""
    block = aligned(BLOCK)
    began = time.perf_counter()
    with closing(File(path, new=True)) as file:
        for at in range(0, nbytes, BLOCK):
            file.write(at, block)
        file.sync()
    return time.perf_counter() - began


def read_s(path: Path) -> float:
    """Seconds to read a file past the page cache, into the same memory again and again."""
    block = aligned(BLOCK)
    began = time.perf_counter()
    with closing(File(path)) as file:
        for at in range(0, file.size, BLOCK):
            file.read_into(at, block)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print two tables, and write benchmarks/out/checkpoint.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=6, help="of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    place = Lane("benchmark", threads=1, workers=asked.threads)
    try:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            measure(asked, Session(asked.parameters, place), Path(folder))
    finally:
        place.close()


def measure(asked: argparse.Namespace, session: Session, folder: Path) -> None:
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    disk: dict[str, list[float]] = {name: [] for name in ("write_s", "load_s", "read_s")}
    path = folder / file_name(1)
    run(session, folder, None, 2)  # the first steps are slower
    for _ in progress(range(asked.rounds), "rounds"):
        for way, spare in WAYS.items():
            runs[way].append(run(session, folder, spare, asked.steps))
        nbytes = path.stat().st_size
        disk["write_s"].append(disk_s(folder / "zeroes", nbytes))
        disk["load_s"].append(seconds(lambda: load_into(session, folder)))
        disk["read_s"].append(read_s(path))
    rows = {way: summed_up(of_way) for way, of_way in runs.items()}
    medians = {name: statistics.median(times) for name, times in disk.items()}
    show(
        f"Steps of {asked.parameters:,} parameters while a checkpoint is written; milliseconds, medians over runs",
        ["", "step", "longest step", "checkpoint", "longest wait", "wait / step"],
        [[way, *(milliseconds(row[name]) for name in SHOWN), f"{row['ratio']:.2f}"] for way, row in rows.items()],
    )
    show(
        f"The disk, with the {nbytes / 1e9:.2f} GB of the checkpoint",
        ["", "GB/s"],
        [[name.removesuffix("_s"), f"{nbytes / 1e9 / taken:.2f}"] for name, taken in medians.items()],
    )
    write("checkpoint", {"parameters": asked.parameters, "bytes": nbytes, "rows": rows, "disk": medians})


def load_into(session: Session, folder: Path) -> None:
    """Read the checkpoint into the session's own buffers."""
    buffers = {"params": session.working.params} | {f"state.{n}": flat for n, flat in session.working.state.items()}
    Checkpoints(folder).load(1, lambda name, _: buffers[name])


def summed_up(runs: list[Run]) -> dict[str, float]:
    """Medians over runs; ``ratio``: of the longest wait to a step without a checkpoint of the same run."""
    steps = [statistics.median(run.steps_s) for run in runs]
    return {
        "step_s": statistics.median(steps),
        "longest_s": statistics.median(max(run.steps_s) for run in runs),
        "wait_s": statistics.median(run.wait_s for run in runs),
        "ratio": statistics.median(run.wait_s / step for run, step in zip(runs, steps, strict=True)),
        "checkpoint_s": statistics.median(run.checkpoint_s for run in runs),
    }


if __name__ == "__main__":
    main()
