"""A parameter server as a Ray actor; arrays above 100 kB go through Ray's shared memory, whatever the case says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from cases import Case
from peers.parameter_server import ParameterServer
from peers.together import Step, together

LEAST_STORE_BYTES = 200 << 20


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  Ray's own spelling; others' memory is theirs
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # workers import this module
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=max(LEAST_STORE_BYTES, 6 * case.clients * case.wire_bytes),
        _node_ip_address="127.0.0.1",
    )
    try:
        actor = ray.remote(Holder).remote(case)
        yield {"": together([partial(_step, actor, _arrays(case), _arrays(case)) for _ in range(case.clients)])}
    finally:
        ray.shutdown()


def _step(actor: Any, grads: list[NDArray[Any]], params: list[NDArray[Any]]) -> None:
    # The arrays that come back are read-only, in Ray's memory: a model needs its own.
    for param, new in zip(params, ray.get(actor.step.remote(grads)), strict=True):
        np.copyto(param, new)


class Holder:
    """The actor: it holds the weights, and moves them as NumPy arrays, which Ray does not copy to receive."""

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(case.server_threads)
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._server, self._dtype = ParameterServer(case), case.wire_dtype

    def step(self, grads: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [_array(new) for new in self._server.step([torch.from_numpy(grad).view(self._dtype) for grad in grads])]


def _arrays(case: Case) -> list[NDArray[Any]]:
    return [_array(tensor) for tensor in case.wire_tensors()]


def _array(tensor: Tensor) -> NDArray[Any]:
    """The same memory; NumPy has no bfloat16, so that goes as its bits."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.int16)).numpy()
