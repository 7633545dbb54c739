"""FastAPI, httpx and torch.save, written the obvious way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from torch import Tensor

from cases import Case
from peers.parameter_server import ParameterServer
from peers.place import PATIENCE_S, Place, served
from peers.together import Step, together


@contextmanager
def steps(case: Case) -> Iterator[dict[str, Step]]:
    with served(serve, case) as place:
        place.connect().close()
        transport = httpx.HTTPTransport(uds=None if place.path is None else str(place.path))
        with httpx.Client(
            transport=transport,
            base_url=f"http://127.0.0.1:{place.port}",
            timeout=PATIENCE_S,
            trust_env=False,
        ) as client:
            yield {"": together([partial(_step, client, case.wire_tensors()) for _ in range(case.clients)])}


def _step(client: httpx.Client, grads: list[Tensor]) -> list[Tensor]:
    return _read(client.post("/step", content=_written(grads)).raise_for_status().content)


def serve(case: Case, place: Place) -> None:
    """Serve one route."""
    server, app = ParameterServer(case), FastAPI()

    @app.post("/step")
    async def step(request: Request) -> Response:
        return Response(_written(server.step(_read(await request.body()))))

    uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run(sockets=[place.listen()])


def _written(tensors: list[Tensor]) -> bytes:
    body = io.BytesIO()
    torch.save(tensors, body)
    return body.getvalue()


def _read(body: bytes) -> list[Tensor]:
    tensors: list[Tensor] = torch.load(io.BytesIO(body))
    return tensors
