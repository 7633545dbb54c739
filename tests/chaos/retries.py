"""Pushes over a proxy that breaks connections: each is sent until it is answered, and is one step."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from safetensors.torch import load

from crashing_server import CrashingServer
from faulty_proxy import Chance, FaultyProxy
from raw_safetensors import tensor_file
from reaching import http_client

CLIENTS = 8
LENGTH = 64
SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
SESSION = {"optimizer": {"name": "sgd", "lr": 1.0}, "tensors": [{"name": "w", "shape": [LENGTH]}]}


class Told(NamedTuple):
    """What came of all pushes.

    Attributes:
      retries: requests that were sent again.   duplicates: pushes whose answer said that they had been stepped with.
    """

    pushes: int
    retries: int
    duplicates: int


def retried(folder: Path, seed: int, retries: int) -> Told:
    """Let clients push, each to a session of its own, until so many requests were sent again.

    Raises: AssertionError, for a step that is there twice, or not at all.
    """
    with (
        CrashingServer(folder / "data") as server,
        FaultyProxy(lambda: server.url, Chance(seed, broken=1.0, mean=600, delayed=0.02)) as proxy,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        told = list(pool.map(lambda _: _client(server.url, proxy.url, retries // CLIENTS), range(CLIENTS)))
    return Told(*map(sum, zip(*told, strict=True)))


def _client(direct: str, proxy: str, wanted: int) -> Told:
    """Whole numbers for gradients: what the weights must be is known without rounding."""
    pushes = retries = duplicates = 0
    weights = np.zeros(LENGTH, np.int64)
    with http_client(direct) as http, http_client(proxy, timeout=10) as faulty:
        path = http.post("/v1/sessions", json=SESSION).headers["Location"]
        while retries < wanted:
            pushes += 1
            grads = pushes * np.arange(LENGTH) % 5
            weights -= grads
            attempts, receipt = _push(faulty, path, pushes, grads)
            assert (receipt["step"], receipt["base_step"], receipt["outcome"]) == (pushes, pushes - 1, "applied")
            retries += attempts - 1
            duplicates += receipt["duplicate"]
        assert http.get(path).json()["step"] == pushes
        given = load(http.get(f"{path}/params", headers={"Accept": SAFETENSORS["Content-Type"]}).content)["w"]
        np.testing.assert_array_equal(given.numpy(), weights)
        assert _losses(http, path) == list(range(1, pushes + 1))
    return Told(pushes, retries, duplicates)


def _push(http: httpx.Client, path: str, number: int, grads: np.ndarray[Any, Any]) -> tuple[int, dict[str, Any]]:
    """How often it was sent, and the receipt."""
    body = tensor_file({"w": torch.from_numpy(grads.astype(np.float32))}, {"loss": str(number)})
    headers = {**SAFETENSORS, "Accept": "application/json", "Idempotency-Key": str(number)}
    attempts = 0
    while True:
        attempts += 1
        try:
            reply = http.post(f"{path}/steps", content=body, headers=headers, params={"pull": "none"})
        except httpx.TransportError:
            continue
        if reply.status_code == 200:
            receipt: dict[str, Any] = reply.json()["receipt"]
            return attempts, receipt
        assert reply.status_code == 409, reply.text  # the request whose connection broke is still on its way
        time.sleep(0.001)


def _losses(http: httpx.Client, path: str) -> list[float]:
    """Of the history, in order."""
    losses: list[float] = []
    while True:
        rows = http.get(f"{path}/steps", params={"after": len(losses), "limit": 1000}).json()["steps"]
        if not rows:
            return losses
        losses += [row["loss"] for row in rows]
