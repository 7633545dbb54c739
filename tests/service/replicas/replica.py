"""Servers that share a Redis, and what a trainer does with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import torch
from safetensors.torch import load

from raw_safetensors import tensor_file
from reaching import http_client
from redis_server import RedisServer
from server_process import ServerProcess

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
TENSORS = [{"name": "w", "shape": [30, 40]}, {"name": "b", "shape": [40]}]
ADAMW = {"name": "adamw", "lr": 0.05, "weight_decay": 0.1}
DESCRIPTION = {"optimizer": ADAMW, "tensors": TENSORS, "storage": {"backend": "redis"}}


class Replica(ServerProcess):
    """A server that can crash, and be started again where it was."""

    http: httpx.Client

    def __enter__(self) -> Self:
        super().__enter__()
        self.http = http_client(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self in self.running:
            super().__exit__()

    def crash(self) -> None:
        """It is killed, and gets no chance to say anything."""
        self.running.remove(self)
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def start_again(self) -> None:
        self.http.close()
        self.__enter__()


class Pair(NamedTuple):
    """Two servers, and the Redis that they share."""

    here: Replica
    there: Replica
    redis: RedisServer


def replica(folder: Path, name: str, redis_url: str, **settings: str) -> Replica:
    """One that has yet to be started."""
    return Replica(folder / name, REDIS_URL=redis_url, **settings)


def create(http: httpx.Client, **description: Any) -> str:
    """A session's path."""
    reply = http.post("/v1/sessions", json=DESCRIPTION | description)
    assert reply.status_code == 201, reply.text
    return reply.headers["Location"]


def grads(number: int) -> dict[str, torch.Tensor]:
    """Those of the push of that number."""
    generator = torch.Generator().manual_seed(number)
    return {t["name"]: torch.randn(t["shape"], generator=generator) for t in TENSORS}  # type: ignore[call-overload]


def push(http: httpx.Client, path: str, number: int, *, if_match: str | None = None) -> httpx.Response:
    """Push under a key of the number's own."""
    return push_tensors(http, path, grads(number), f"push-{number}", if_match)


def push_tensors(
    http: httpx.Client, path: str, tensors: Mapping[str, torch.Tensor], key: str, if_match: str | None = None
) -> httpx.Response:
    """Push any gradients under any key; answered with the receipt alone."""
    headers = {**SAFETENSORS, "Accept": "application/json", "Idempotency-Key": key}
    if if_match is not None:
        headers["If-Match"] = if_match
    return http.post(f"{path}/steps", content=tensor_file(tensors), headers=headers, params={"pull": "none"})


def receipt(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()["receipt"]
    return found


def pull(http: httpx.Client, path: str) -> dict[str, torch.Tensor]:
    reply = http.get(f"{path}/params", headers={"Accept": SAFETENSORS["Content-Type"]})
    assert reply.status_code == 200, reply.text
    return load(reply.content)


def replayed(numbers: Iterable[int]) -> dict[str, torch.Tensor]:
    """The weights after these pushes, by torch itself."""
    params = {t["name"]: torch.nn.Parameter(torch.zeros(t["shape"])) for t in TENSORS}  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(params.values(), lr=ADAMW["lr"], weight_decay=ADAMW["weight_decay"])
    for number in numbers:
        for name, grad in grads(number).items():
            params[name].grad = grad
        optimizer.step()
    return {name: param.detach() for name, param in params.items()}


def assert_stands(http: httpx.Client, path: str, numbers: Sequence[int]) -> None:
    """Every one of these pushes was stepped with, in this order, once, and is in the history of whoever is asked."""
    weights = pull(http, path)
    for name, expected in replayed(numbers).items():
        np.testing.assert_allclose(weights[name], expected, rtol=1e-5, atol=1e-6)
    assert http.get(path).json()["step"] == len(numbers)
    steps = http.get(f"{path}/steps", params={"limit": 1000}).json()["steps"]
    assert [step["step"] for step in steps] == list(range(1, len(numbers) + 1))
