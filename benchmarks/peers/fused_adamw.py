"""The floor of the update: torch's fused AdamW in process, with no bytes moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from cases import Case
from peers.together import Step


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    """Yields the update of one flat tensor on one thread and on every core; once for each client."""
    weight = torch.nn.Parameter(torch.randn(case.parameters))
    weight.grad = torch.randn(case.parameters)
    optimizer = torch.optim.AdamW([weight], fused=True)
    ways = {"1 thread": 1, f"{os.cpu_count()} threads": os.cpu_count() or 1}
    yield {name: partial(_update, optimizer, threads, case.clients) for name, threads in ways.items()}


def _update(optimizer: torch.optim.Optimizer, threads: int, times: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    for _ in range(times):
        optimizer.step()
