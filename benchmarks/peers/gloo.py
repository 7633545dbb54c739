"""torch.distributed's send and recv over gloo, tensor by tensor; its transport is TCP, whatever the case says."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.distributed as dist
from torch import Tensor

from cases import Case
from peers.parameter_server import ParameterServer
from peers.place import Place, served
from peers.together import Step, together

SERVER, CLIENT = 0, 1


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    with served(serve, case) as place:
        _join(CLIENT, place)
        # One client is one tag: a stream of messages of its own.
        clients = range(case.clients)
        yield {"": together([partial(_step, case.wire_tensors(), case.wire_tensors(), tag) for tag in clients])}


def _step(grads: list[Tensor], params: list[Tensor], tag: int) -> None:
    for grad in grads:
        dist.send(grad, SERVER, tag=tag)
    for param in params:
        dist.recv(param, SERVER, tag=tag)


def serve(case: Case, place: Place) -> None:
    """Answer each client in a thread of its own."""
    _join(SERVER, place)
    server = ParameterServer(case)
    for tag in range(case.clients):
        threading.Thread(target=_answer, args=(server, case.wire_tensors(), tag)).start()


def _answer(server: ParameterServer, grads: list[Tensor], tag: int) -> None:
    while True:
        for grad in grads:
            dist.recv(grad, CLIENT, tag=tag)
        for param in server.step(grads):
            dist.send(param, CLIENT, tag=tag)


def _join(rank: int, place: Place) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{place.folder}/group", rank=rank, world_size=2)
