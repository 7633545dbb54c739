"""A training whose server is made to fail, and what must be true of it whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from safetensors.torch import load

from crashing_server import CrashingServer
from raw_safetensors import tensor_file
from torch_replay import LARGE, Replay, Task

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
SMALL_TASK = Task("small")
LARGE_TASK = Task("large", shapes=LARGE)


class Training:
    """One session, and the numbers of the pushes that it has acknowledged, in the order of their steps."""

    def __init__(self, server: CrashingServer, task: Task = SMALL_TASK, **description: Any) -> None:
        self._server = server
        self.task = task
        self.path = ""
        self.acknowledged: list[int] = []
        self._description = description

    def begin(self) -> Self:
        reply = self._server.http.post("/v1/sessions", json=self.task.session | self._description)
        assert reply.status_code == 201, reply.text
        self.path = reply.headers["Location"]
        return self

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> Path:
        """What the server keeps of it."""
        return self._server._data / "sessions" / self.id

    @property
    def next(self) -> int:
        """The number of the first push that has not been acknowledged."""
        return len(self.acknowledged) + 1

    def body(self, number: int) -> bytes:
        return tensor_file(self.task.grads(number), {"loss": str(number)})

    def headers(self, number: int) -> dict[str, str]:
        return {**SAFETENSORS, "Accept": "application/json", "Idempotency-Key": f"push-{number}"}

    def push(self, number: int | None = None, *, http: httpx.Client | None = None) -> httpx.Response:
        """Send a push, the next without a number; raises what its connection breaks with."""
        number = self.next if number is None else number
        return (http or self._server.http).post(
            f"{self.path}/steps", content=self.body(number), headers=self.headers(number), params={"pull": "none"}
        )

    def train(self, pushes: int = 1) -> None:
        """Push, and see each acknowledged."""
        for _ in range(pushes):
            self.settle()

    def settle(self) -> dict[str, Any]:
        """Push the next, which may have been stepped with before; its receipt."""
        number = self.next
        reply = self.push(number)
        assert reply.status_code == 200, reply.text
        receipt: dict[str, Any] = reply.json()["receipt"]
        assert (receipt["step"], receipt["outcome"]) == (number, "applied")
        self.acknowledged.append(number)
        return receipt

    def tensors(self, below: str) -> dict[str, Any]:
        reply = self._server.http.get(self.path + below, headers={"Accept": SAFETENSORS["Content-Type"]})
        assert reply.status_code == 200, reply.text
        return load(reply.content)

    def seen(self) -> tuple[str, bytes, bytes]:
        """ETag, weights and state, to the bit."""
        http = self._server.http
        pulled, state = http.get(f"{self.path}/params"), http.get(f"{self.path}/state")
        assert (pulled.status_code, state.status_code) == (200, 200), (pulled.text[:500], state.text[:500])
        return pulled.headers["ETag"], pulled.content, state.content

    def rows(self) -> list[dict[str, Any]]:
        """Its history."""
        rows: list[dict[str, Any]] = []
        while True:
            after = str(rows[-1]["step"]) if rows else "0"
            reply = self._server.http.get(f"{self.path}/steps", params={"after": after, "limit": "1000"})
            assert reply.status_code == 200, reply.text
            new = reply.json()["steps"]
            rows += new
            if not new:
                return rows

    def assert_nothing_lost(self, numbers: Sequence[int] | None = None) -> None:
        """I1, I2, I4: state and history are those of the pushes acknowledged, each once, in order."""
        numbers = self.acknowledged if numbers is None else numbers
        info = self._server.http.get(self.path)
        assert info.status_code == 200, info.text
        assert info.json()["step"] == len(numbers)
        Replay.of(self.task, numbers).assert_equal(self.tensors("/params"), self.tensors("/state"))
        rows = self.rows()
        assert [row["step"] for row in rows] == list(range(1, len(numbers) + 1))
        assert [row["loss"] for row in rows] == [float(number) for number in numbers]


def assert_refused(reply: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """A problem document of this kind; its fields."""
    assert (reply.status_code, reply.json()["type"]) == (status, f"/problems/{slug}"), reply.text
    problem: dict[str, Any] = reply.json()
    return problem
