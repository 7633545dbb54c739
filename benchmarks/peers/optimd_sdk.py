"""optimd: `Session.step` over its own client, weights received into place, history on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from cases import Case
from optimd import Client, RawTensor, Session
from optimd_server import optimd_server
from peers.together import Step, together

DIFFERENCE = {"grads": "bf16", "params": "bf16", "difference": True}


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    """Yields a step of float32 arrays.

    For bfloat16: one of bfloat16 tensors; one of float32 arrays, converted on their way; and the same with weights that
    come as differences, so that no rounding adds up.
    """
    with optimd_server(case.transport) as server, Client(server.url, timeout=600) as client:
        if case.dtype == "f32":
            yield {"": _way(case, client, _float32_step)}
        else:
            yield {
                "bf16 tensors": _way(case, client, _bfloat16_step),
                "f32 arrays": _way(case, client, partial(_float32_step, send="bf16", pull="bf16")),
                "f32 arrays, difference": _way(case, client, _float32_step, wire=DIFFERENCE),
            }


def _way(case: Case, client: Client, way: Callable[[Case, Session], Step], **fields: Any) -> Step:
    """A step of every client, in one session."""
    tensors = {f"t{i}": [length] for i, length in enumerate(case.lengths)}
    created = client.create_session("adamw", tensors=tensors, durability="memory", **fields)
    sessions = [created, *(client.session(created.id) for _ in range(case.clients - 1))]
    return together([way(case, session) for session in sessions])


def _float32_step(case: Case, session: Session, **options: Any) -> Step:
    return _step(session, case.float32_arrays(), out=case.float32_arrays(), **options)


def _bfloat16_step(case: Case, session: Session) -> Step:
    return _step(session, _raw_tensors(case), out=_raw_tensors(case), pull="bf16")


def _step(session: Session, grads: dict[str, Any], **options: Any) -> Step:
    return partial(session.step, grads, loss=0.5, if_match=None, **options)


def _raw_tensors(case: Case) -> dict[str, RawTensor]:
    return {
        f"t{i}": RawTensor("BF16", tuple(tensor.shape), tensor.view(torch.int16).numpy())
        for i, tensor in enumerate(case.wire_tensors())
    }
