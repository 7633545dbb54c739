"""What it costs that a step is on disk when it is acknowledged, and how long a restart takes.

    python benchmarks/durability.py [--parameters N] [--rounds N] [--journal-bytes N]

Push + AdamW + pull through the SDK with durability "memory" and "step", in turns with the disk alone: the same bytes
written to a plain file and synced, through the page cache and past it. Then steps are taken until the journal holds
``--journal-bytes``, the server is killed, and another is started: the time until the session answers, beside what
reading the journal's file and taking the same steps in memory cost apart.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from figures import milliseconds, progress, show, write
from interleaved import PAUSE_S
from optimd import Client
from optimd_server import optimd_server
from optimd_service.store.disk import File, aligned

PIECE = 4 * 2**20
MB = 1_000_000
# So that no checkpoint is made between the first step and the kill.
NO_CHECKPOINT = {"steps": 2**62}


def main() -> None:
    """Measure, print two tables, and write benchmarks/out/durability_….json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--journal-bytes", type=int, default=1_000_000_000)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        steps = _steps(asked, folder)
        recovery = _recovery(asked, folder)
    write(f"durability_{asked.parameters}", {"steps": steps, "recovery": recovery})


def _steps(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    taken: dict[str, list[float]] = {}
    with optimd_server(data=folder / "a") as server, Client(server.url, timeout=600) as client:
        ways = {f"optimd, durability {mode}": _way(client, asked.parameters, mode) for mode in ("memory", "step")}
        plain = np.ones(asked.parameters, np.float32).view(np.uint8).data
        ways["disk, through the page cache"] = partial(_through_cache, folder / "plain", plain)
        ways["disk, past the page cache"] = partial(_past_cache, folder / "direct", plain)
        for number in progress(range(asked.rounds + 2), "rounds"):
            for way, step in ways.items():
                time.sleep(PAUSE_S)
                seconds = _timed(step)
                if number > 1:  # the first ones find memory and files that are new
                    taken.setdefault(way, []).append(seconds)
    medians = {way: median(seconds) for way, seconds in taken.items()}
    disk = min(seconds for way, seconds in medians.items() if way.startswith("disk"))
    floor = max(disk, medians["optimd, durability memory"])
    rows = [(way, milliseconds(seconds), f"{seconds / floor:.2f}") for way, seconds in medians.items()]
    show(f"One step of {asked.parameters:,} float32 parameters", ("", "median ms", "× the larger of both"), rows)
    return medians


def _way(client: Client, parameters: int, mode: str) -> Callable[[], Any]:
    out = {"w": np.zeros(parameters, np.float32)}
    grads = {"w": np.full(parameters, 1e-3, np.float32)}
    session = client.create_session("adamw", tensors={"w": [parameters]}, durability=mode)
    return partial(session.step, grads, loss=0.5, if_match=None, out=out)


def _through_cache(path: Path, content: memoryview) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for start in range(0, len(content), PIECE):
        os.write(fd, content[start : start + PIECE])
    os.fdatasync(fd)
    os.close(fd)


def _past_cache(path: Path, content: memoryview) -> None:
    place = aligned(len(content))
    file = File(path, new=True)
    for start in range(0, len(content), PIECE):
        file.write(start, place[start : start + PIECE])
    file.sync()
    file.close()


def _recovery(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    grads = {"w": np.full(asked.parameters, 1e-3, np.float32)}
    count = -(-asked.journal_bytes // grads["w"].nbytes)
    described: dict[str, Any] = {"tensors": {"w": [asked.parameters]}}
    with optimd_server(data=folder / "b") as server, Client(server.url, timeout=600) as client:
        in_memory = client.create_session("adamw", tensors=described["tensors"], durability="memory")
        applying = _timed(lambda: [in_memory.push(grads, if_match=None) for _ in range(count)])
        in_memory.delete()
        session = client.create_session("adamw", **described, checkpoint=NO_CHECKPOINT)
        for _ in range(count):
            session.push(grads, if_match=None)
        os.kill(server.pid, signal.SIGKILL)
    path = max((folder / "b" / "sessions" / session.id).glob("journal-*"), key=lambda file: file.stat().st_size)
    reading = _timed(partial(_read, path))
    began = time.perf_counter()
    with optimd_server(data=folder / "b") as server, Client(server.url, timeout=600) as client:
        started = time.perf_counter()
        found = client.session(session.id).refresh()["step"]
        recovered = time.perf_counter()
    if found != count:
        raise SystemExit(f"{count} steps were acknowledged, and {found} are there")
    seconds = recovered - started
    figures = {
        "journal_bytes": float(count * grads["w"].nbytes),
        "steps": float(count),
        "start_s": started - began,
        "recovery_s": seconds,
        "reading_s": reading,
        "applying_over_http_s": applying,
    }
    speed = figures["journal_bytes"] / seconds / MB
    rows = [
        ("recovery, until the session answers", milliseconds(seconds), f"{speed:,.0f}"),
        ("reading the file", milliseconds(reading), f"{figures['journal_bytes'] / reading / MB:,.0f}"),
        ("the same steps over HTTP, in memory", milliseconds(applying), ""),
    ]
    show(f"A journal of {count:,} steps of {asked.parameters:,} parameters", ("", "ms", "MB/s"), rows)
    return figures


def _read(path: Path) -> None:
    place, file, at = aligned(PIECE), File(path), 0
    while count := file.read_into(at, place):
        at += count
    file.close()


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
