"""Small steps of one session alone, and while another session is pushed a gigabyte, over and over.

    python benchmarks/side_by_side.py [--parameters N] [--large N] [--seconds S] [--rounds N] [--transport tcp|uds]

Small and large steps come from a client process each, and go to one server process. Beside "large pushes" the gradients
go up and a receipt comes back; beside "large steps" the weights come back too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np

from cases import TRANSPORTS, Case
from figures import milliseconds, progress, show, summary, write
from optimd import Client, Session
from optimd_server import optimd_server
from peers.place import SPAWN

COLUMNS = ("small steps", "median ms", "p99 ms", "max ms", "steps", "large ones meanwhile", "each s")
ALONE = "alone"
BESIDE = {"beside large pushes": "none", "beside large steps": "f32"}


def main() -> None:
    """Measure, print one table, and write benchmarks/out/side_by_side.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=250_000_000, help="parameters of the other session")
    parser.add_argument("--seconds", type=float, default=4, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    asked = parser.parse_args()
    small: dict[str, list[float]] = {way: [] for way in (ALONE, *BESIDE)}
    large: dict[str, list[float]] = {way: [] for way in (ALONE, *BESIDE)}
    with optimd_server(asked.transport) as server, Client(server.url) as client:
        session = client.create_session("adamw", tensors={"w": [asked.parameters]}, durability="memory")
        with _large_client(server.url, asked.large) as pipe:
            for _ in progress(range(asked.rounds), "rounds"):
                small[ALONE] += _small_steps(session, asked)
                for way, pull in BESIDE.items():
                    pipe.send(pull)
                    small[way] += _small_steps(session, asked)
                    pipe.send(None)
                    large[way] += pipe.recv()
    report(asked, small, large)


def _small_steps(session: Session, asked: argparse.Namespace) -> list[float]:
    """Seconds of each small step, one after the other, for as long as a round lasts."""
    grads = {"w": np.random.default_rng(0).standard_normal(asked.parameters, dtype=np.float32)}
    out = {"w": np.ones(asked.parameters, np.float32)}
    taken, end = [], time.perf_counter() + asked.seconds
    while (began := time.perf_counter()) < end:
        session.step(grads, out=out)
        taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def _large_client(url: str, parameters: int) -> Iterator[Connection]:
    """A process that begins to push when it is sent what to pull, and stops when it is sent None."""
    pipe, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_push, args=(url, parameters, theirs), daemon=True)
    process.start()
    theirs.close()
    pipe.recv()
    yield pipe
    process.kill()
    process.join()


def _push(url: str, parameters: int, pipe: Connection) -> None:
    """Take large steps while wanted, and tell the seconds of each; the last one ends after it was wanted."""
    grads = Case(parameters).float32_arrays()
    out = Case(parameters).float32_arrays()
    with Client(url, timeout=600) as client:
        session = client.create_session("adamw", params=out, durability="memory")
        session.step(grads, out=out)
        pipe.send("ready")
        while True:
            pull, taken = pipe.recv(), []
            while not pipe.poll():
                began = time.perf_counter()
                session.step(grads, pull=pull, out=out)
                taken.append(time.perf_counter() - began)
            pipe.recv()
            pipe.send(taken)


def report(asked: argparse.Namespace, small: dict[str, list[float]], large: dict[str, list[float]]) -> None:
    """Print and write the figures."""
    told = {way: summary(taken) for way, taken in small.items()}
    beside = {way: summary(taken) for way, taken in large.items() if taken}
    rows = [
        [way, *(milliseconds(each[what]) for what in ("median_s", "p99_s", "max_s")), f"{each['samples']:,}"]
        + ([f"{beside[way]['samples']}", f"{beside[way]['median_s']:.2f}"] if way in beside else ["", ""])
        for way, each in told.items()
    ]
    show(f"{asked.parameters:,} parameters beside {asked.large:,}, f32, {asked.transport}", COLUMNS, rows)
    write("side_by_side", {"settings": vars(asked), "small": told, "large": beside})


if __name__ == "__main__":
    main()
