"""A parameter server on torch.distributed.rpc; TensorPipe chooses how the bytes go, whatever the case says."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor
from torch.distributed import rpc

from cases import Case
from peers.parameter_server import ParameterServer
from peers.place import Place, served
from peers.together import Step, together

SERVER: list[ParameterServer] = []
"""In the server's process, the one that calls are for."""


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    with served(serve, case) as place:
        _join("client", 1, case, place)
        try:
            yield {"": together([partial(_step, case.wire_tensors()) for _ in range(case.clients)])}
        finally:
            rpc.shutdown(graceful=False)


def _step(grads: list[Tensor]) -> list[Tensor]:
    # What comes back is the model's new weights: a user would point the parameters at it.
    weights: list[Tensor] = rpc.rpc_sync("server", update, args=(grads,))
    return weights


def update(grads: list[Tensor]) -> list[Tensor]:
    """What the client calls on the server."""
    return SERVER[0].step(grads)


def serve(case: Case, place: Place) -> None:
    """Answer calls until the process ends."""
    SERVER.append(ParameterServer(case))
    _join("server", 0, case, place)
    threading.Event().wait()


def _join(name: str, rank: int, case: Case, place: Place) -> None:
    os.environ["TP_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=max(case.clients, 4), rpc_timeout=0, init_method=f"file://{place.folder}/group"
    )
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)  # type: ignore[no-untyped-call]
