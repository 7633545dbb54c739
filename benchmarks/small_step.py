"""One small step, push + AdamW + pull of 10,000 float32 parameters, beside its floor and a peer in the same run.

    python benchmarks/small_step.py [--parameters N] [--steps N] [--rounds N]

Rows, interleaved round by round, medians over all rounds:
  optimd, SDK            Session.step over loopback TCP, history on, receipt and weights in place
  bare ASGI + http.client  a route that reads the body and sends it back: no optimizer, no history, no checks
  raw socket + AdamW     the floor: the same bytes there and back without HTTP, and torch's fused AdamW in process
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from optimd import Client

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from local_server import local_server  # the same server process that the examples start

OUT = Path(__file__).parent / "out"
ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": bytes(body)})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
"""
Step = Callable[[], object]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def optimd_step(parameters: int) -> Iterator[Step]:
    """A step through the SDK."""
    grads = {"w": np.random.default_rng(0).standard_normal(parameters, dtype=np.float32)}
    out = {"w": np.zeros(parameters, dtype=np.float32)}
    with local_server() as url, Client(url) as client:
        session = client.create_session("adamw", tensors={"w": [parameters]})
        yield lambda: session.step(grads, loss=0.5, out=out)


@contextmanager
def echo_step(parameters: int) -> Iterator[Step]:
    """The same bytes through the plainest ASGI application, in a process of its own."""
    body, port = bytes(4 * parameters), free_port()
    with subprocess.Popen([sys.executable, "-c", ECHO, str(port)]) as process:
        try:
            connection = _connected(port)

            def step() -> None:
                connection.request("POST", "/", body)
                connection.getresponse().read()

            yield step
        finally:
            process.terminate()


def _connected(port: int) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(200):
        try:
            connection.connect()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    raise RuntimeError("the echo server did not start")


@contextmanager
def floor_step(parameters: int) -> Iterator[Step]:
    """Raw bytes there and back between two processes' worth of socket, and the fused update in process."""
    weights = torch.zeros(parameters, requires_grad=True)
    weights.grad = torch.randn(parameters)
    optimizer = torch.optim.AdamW([weights], fused=True)
    payload = bytearray(4 * parameters)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_echo_raw, args=(server, len(payload)), daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def step() -> None:
                connection.sendall(payload)
                _read_whole(connection, memoryview(payload))
                optimizer.step()

            yield step


def _echo_raw(server: socket.socket, length: int) -> None:
    connection, _ = server.accept()
    buffer = bytearray(length)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while _read_whole(connection, memoryview(buffer)):
            connection.sendall(buffer)


def _read_whole(connection: socket.socket, view: memoryview) -> bool:
    while view:
        got = connection.recv_into(view)
        if not got:
            return False
        view = view[got:]
    return True


def timed(step: Step, steps: int) -> list[float]:
    """Milliseconds of each of so many steps, after some to warm up."""
    for _ in range(20):
        step()
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def main() -> None:
    """Measure, print one table, and write benchmarks/out/small_step.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=500, help="in each round")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = {
        "optimd, SDK": optimd_step,
        "bare ASGI + http.client": echo_step,
        "raw socket + AdamW": floor_step,
    }
    taken: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as running:
        steps = {name: running.enter_context(start(asked.parameters)) for name, start in names.items()}
        for _ in range(asked.rounds):
            for name, step in steps.items():
                taken[name] += timed(step, asked.steps)
    report(taken, asked.parameters)


def report(taken: dict[str, list[float]], parameters: int) -> None:
    """Print and write the figures."""
    figures = {
        name: {
            "median_ms": statistics.median(times),
            "p99_ms": statistics.quantiles(times, n=100)[98],
            "steps": len(times),
        }
        for name, times in taken.items()
    }
    floor = figures["raw socket + AdamW"]["median_ms"]
    table = Table(title=f"one step, {parameters:,} float32 parameters")
    for column in ("", "median ms", "p99 ms", "× floor"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in figures.items():
        ratio = row["median_ms"] / floor
        table.add_row(name, f"{row['median_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{ratio:.1f}")
    Console().print(table)
    OUT.mkdir(exist_ok=True)
    (OUT / "small_step.json").write_text(json.dumps({"parameters": parameters, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
