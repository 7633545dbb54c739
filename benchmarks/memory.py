"""What a session takes at its peak: the server's whole memory, and what the client adds to the model.

    python benchmarks/memory.py [--parameters N] [--tensors N] [--steps N] [--transport tcp|uds]

AdamW, float32, push + update + pull over and over. The server is to stay below 20 bytes a parameter and 400 MB; a
client below one more copy of the parameters than torch itself holds, which is the parameters and their gradients.
Peaks are the kernel's (VmHWM); every way has processes of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cases import TRANSPORTS, Case
from figures import show, write
from optimd import Client, RemoteOptimizer
from optimd_server import optimd_server
from peers.place import SPAWN

MB = 1_000_000
SERVER_BYTES = 20
SERVER_MORE = 400 * MB
CLIENT_BYTES = 4
COLUMNS = ("way", "server's peak MB", "of 20 n + 400 MB", "client's growth MB", "of one copy")


class Peak(NamedTuple):
    """Bytes: of the server's process, and above what the client's held before it knew of the server."""

    server: int
    client: int


def main() -> None:
    """Measure, print one table, and write benchmarks/out/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--tensors", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    asked = parser.parse_args()
    case = Case(asked.parameters, asked.tensors, transport=asked.transport)
    peaks = {way: peak(step, case, asked.steps) for way, step in WAYS.items()}
    server_allowed, client_allowed = SERVER_BYTES * case.parameters + SERVER_MORE, CLIENT_BYTES * case.parameters
    rows = [
        [way, *_beside(each.server, server_allowed), *_beside(each.client, client_allowed)]
        for way, each in peaks.items()
    ]
    show(case.title, COLUMNS, rows)
    allowed = {"server": server_allowed, "client": client_allowed}
    write("memory", {"settings": vars(asked), "allowed": allowed, "peaks": {w: p._asdict() for w, p in peaks.items()}})


def _beside(taken: int, allowed: int) -> tuple[str, str]:
    return f"{taken / MB:,.0f}", f"{taken / allowed:.2f}"


def peak(way: Callable[..., object], case: Case, steps: int) -> Peak:
    """The peaks of a server and a client that take so many steps."""
    with optimd_server(case.transport) as server:
        pipe, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_client, args=(way, server.url, case, steps, theirs))
        process.start()
        theirs.close()
        client = pipe.recv()
        process.join()
        return Peak(_status(server.pid, "VmHWM"), client)


def _client(way: Callable[..., object], url: str, case: Case, steps: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    params = [torch.nn.Parameter(torch.randn(length)) for length in case.lengths]
    _backward(params)
    with _growth() as taken:
        way(url, params, steps)
    pipe.send(taken[0])


def _backward(params: list[torch.nn.Parameter]) -> None:
    """Gradients in memory of their own, made without any other."""
    torch.autograd.backward([param.sum() for param in params])


@contextmanager
def _growth() -> Iterator[list[int]]:
    """Bytes that this process's peak in the context lies above what it held before."""
    before = _status("self", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    taken: list[int] = []
    yield taken
    taken.append(_status("self", "VmHWM") - before)


def _status(pid: int | Literal["self"], field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def session_step(url: str, params: list[torch.nn.Parameter], steps: int) -> None:
    """Session.step, weights received into the parameters' own memory."""

    def arrays(tensors: list[Tensor]) -> dict[str, Any]:
        return {f"t{i}": tensor.detach().numpy() for i, tensor in enumerate(tensors)}

    grads, out = arrays([param.grad for param in params if param.grad is not None]), arrays([*params])
    with Client(url) as client:
        session = client.create_session("adamw", params=out, durability="memory")
        for _ in range(steps):
            session.step(grads, out=out)


def optimizer_step(url: str, params: list[torch.nn.Parameter], steps: int) -> None:
    """RemoteOptimizer, waiting for each step."""
    _train(RemoteOptimizer(params, "adamw", url=url, durability="memory"), params, steps)


def overlapped_step(url: str, params: list[torch.nn.Parameter], steps: int) -> None:
    """RemoteOptimizer, hiding the transport."""
    _train(RemoteOptimizer(params, "adamw", url=url, overlap=True, durability="memory"), params, steps)


def _train(optimizer: RemoteOptimizer, params: list[torch.nn.Parameter], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        _backward(params)
        optimizer.step()
        optimizer.wait()
    optimizer.close()


WAYS = {
    "Session.step(grads, out=params)": session_step,
    "RemoteOptimizer": optimizer_step,
    "RemoteOptimizer(overlap=True)": overlapped_step,
}


if __name__ == "__main__":
    main()
