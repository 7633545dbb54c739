"""A warm step of a session in Redis, beside the same step in device memory and writing its new state to that Redis.

    python benchmarks/redis_step.py [--parameters N] [--steps N] [--transport tcp|uds]

AdamW, float32, answered without weights: what moves is gradients to the server, and weights and two moments from there
to Redis. Redis is one of this program's own, over TCP or a Unix socket as the clients are, and writes nothing to disk.
Its floor is one pipeline of SETs of the same bytes by the same library, in pieces of a megabyte, over those before.
A step of each session and a pipeline are taken in turn.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from redis import ConnectionPool, Redis, exceptions
from redis.connection import PythonRespSerializer

from cases import TRANSPORTS, Transport
from figures import show, write
from optimd import Client, Session
from optimd_server import optimd_server

ALLOWED = 1.5
CHUNK_BYTES = 2**20
WARM_UP = 5
START_S = 30
MS = 1000


def main() -> None:
    """Measure, print one table, and write benchmarks/out/redis_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    asked = parser.parse_args()
    taken = measure(asked.parameters, asked.steps, asked.transport)
    medians = {name: median(seconds) for name, seconds in taken.items()}
    apart = medians["in device memory"] + medians["writing the state"]
    rows = [[name, f"{seconds * MS:.1f}", f"{seconds / apart:.2f}"] for name, seconds in medians.items()]
    rows.append(["the last two together", f"{apart * MS:.1f}", f"1 (allowed: {ALLOWED})"])
    show(f"{asked.parameters:,} parameters, {asked.transport}", ("step", "median ms", "of the last two"), rows)
    write("redis_step", {"settings": vars(asked), "median_s": medians, "apart_s": apart, "samples": asked.steps})


def measure(parameters: int, steps: int, transport: Transport) -> dict[str, list[float]]:
    """Seconds of each step, by what took it."""
    with (
        redis_server(transport) as redis,
        optimd_server(transport, REDIS_URL=redis) as server,
        Client(server.url, timeout=600) as client,
    ):
        ways = {
            "in Redis": stepping(client, parameters, storage={"backend": "redis"}),
            "in device memory": stepping(client, parameters, durability="memory"),
            "writing the state": writing(redis, 3 * 4 * parameters),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(WARM_UP + steps):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if number >= WARM_UP:
                    taken[name].append(time.perf_counter() - began)
        return taken


def stepping(client: Client, parameters: int, **fields: object) -> Callable[[], object]:
    """A push of the same gradients, again and again."""
    session: Session = client.create_session("adamw", tensors={"w": [parameters]}, **fields)  # type: ignore[arg-type]
    grads = {"w": np.random.default_rng(0).standard_normal(parameters, dtype=np.float32)}
    return lambda: session.step(grads, loss=0.5, if_match=None, pull="none")


def writing(url: str, nbytes: int) -> Callable[[], object]:
    """One pipeline that writes so many bytes over those that it wrote the last time."""
    state = memoryview(np.random.default_rng(1).bytes(nbytes))
    # hiredis' own way of sending copies every byte, and takes three times as long.
    packer = PythonRespSerializer(6000, lambda v: v if isinstance(v, bytes | memoryview) else str(v).encode())
    redis = Redis(connection_pool=ConnectionPool.from_url(url, command_packer=packer))

    def write_() -> None:
        pipeline = redis.pipeline(transaction=False)
        for at in range(0, nbytes, CHUNK_BYTES):
            pipeline.set(f"floor:{at}", state[at : at + CHUNK_BYTES])
        pipeline.execute()

    return write_


@contextmanager
def redis_server(transport: Transport) -> Iterator[str]:
    """A Redis of one's own; its URL. Raises: RuntimeError, where none is installed or it does not start."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("needs redis-server: make redis")
    with TemporaryDirectory(prefix="bench-") as folder:
        port = _free_port()
        url = f"redis://127.0.0.1:{port}" if transport == "tcp" else f"unix://{folder}/redis"
        options = ["--port", str(port), "--unixsocket", f"{folder}/redis", "--save", "", "--dir", folder]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen([program, *options], stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(url)
            yield url
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if Redis.from_url(url).ping():
                return
        except exceptions.ConnectionError:
            time.sleep(0.05)
    raise RuntimeError("redis-server did not start")


if __name__ == "__main__":
    main()
