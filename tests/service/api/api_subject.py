"""A session that a test calls over HTTP, and what all of it looks like from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import torch
from safetensors.torch import load

import reaching
from raw_safetensors import tensor_file

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
JSON = {"Content-Type": "application/json"}
Tensors = Mapping[str, torch.Tensor]

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3) - 2, "bias": torch.tensor([0.5, -0.5])}
GRADS = {"weight": torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.25, -3.0]]), "bias": torch.tensor([1.0, -0.125])}
NO_DECAY = {"name": "no_decay", "match": ["bias"], "weight_decay": 0.0}


def lists(tensors: Tensors) -> dict[str, Any]:
    """As JSON has them."""
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Subject:
    """Attributes: path: of the session."""

    http: httpx.Client
    path: str

    @classmethod
    def create(
        cls, http: httpx.Client, optimizer: str = "adamw", *, params: Tensors | None = WEIGHTS, **description: Any
    ) -> Subject:
        """A session; further arguments are the optimizer's hyperparameters and fields of the create body."""
        fields = (
            "name", "tensors", "groups", "nonfinite", "seed", "schedule", "clip", "centralize", "maximize",
            "accumulate", "loss_scale", "ema", "swa", "buffers", "frozen", "grad_dtype", "state_dtype", "wire",
            "storage", "durability", "checkpoint",
        )  # fmt: skip
        said = {name: description.pop(name) for name in fields if name in description}
        if reaching.device != "cpu":
            said.setdefault("storage", {"device": "cuda"})
        body = {"optimizer": {"name": optimizer, **description}, **said}
        if params is not None:
            content = tensor_file(params, {"session": json.dumps(body)})
            reply = http.post("/v1/sessions", content=content, headers=SAFETENSORS)
        else:
            reply = http.post("/v1/sessions", json=body)
        assert reply.status_code == 201, reply.text
        return cls(http, reply.headers["Location"])

    def push(
        self,
        grads: Tensors = GRADS,
        *,
        key: str | None = None,
        if_match: str | None = None,
        pull: str | None = None,
        **metadata: str,
    ) -> httpx.Response:
        """Push as safetensors; without ``key`` and ``if_match`` it builds on what the session stands at."""
        if key is None and if_match is None:
            key, if_match = uuid4().hex, self.etag()
        names = {"Idempotency-Key": key, "If-Match": if_match}
        headers = {**SAFETENSORS, **{name: value for name, value in names.items() if value is not None}}
        query = {} if pull is None else {"pull": pull}
        content = tensor_file(grads, metadata or None)
        return self.http.post(f"{self.path}/steps", content=content, headers=headers, params=query)

    def etag(self) -> str:
        return str(self.http.get(self.path).headers["etag"])

    def pull(self, **query: Any) -> dict[str, torch.Tensor]:
        reply = self.http.get(f"{self.path}/params", params=query)
        assert reply.status_code == 200, reply.text
        return load(reply.content)

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.http.get(self.path).json()
        return info

    def steps(self, **query: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.http.get(f"{self.path}/steps", params=query).json()["steps"]
        return rows

    def events(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.http.get(f"{self.path}/events").json()["events"]
        return rows

    def stands(self) -> dict[str, Any]:
        """Everything that can be seen of it: two that are equal are the same session in the same state, to the bit."""
        return {
            "session": self.info(),
            "params": self.http.get(f"{self.path}/params").content,
            "state": self.http.get(f"{self.path}/state").content,
            "steps": self.steps(),
            "events": self.events(),
        }


def receipt_of(reply: httpx.Response) -> dict[str, Any]:
    """The receipt of a push, from whichever kind of reply it came in."""
    assert reply.status_code == 200, reply.text
    if reply.headers["content-type"] == "application/json":
        receipt: dict[str, Any] = reply.json()["receipt"]
    else:
        length = int.from_bytes(reply.content[:8], "little")
        receipt = json.loads(json.loads(reply.content[8 : 8 + length])["__metadata__"]["receipt"])
    return receipt


def wait_until_in_flight(subject: Subject, key: str) -> None:
    """Return when the server has the push of this key in hand: then it refuses a second one for that alone."""
    while subject.push(key=key, if_match='"7777"').status_code != 409:
        pass


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    """The same names, shapes, dtypes and bits."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), name
        assert torch.equal(tensor, other), f"{name}: {tensor} is not {other}"


def assert_refused(reply: httpx.Response, status: int, slug: str, **evidence: Any) -> None:
    """A problem document of this kind, that says something, with this evidence."""
    assert reply.status_code == status, reply.text[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    assert len(problem["title"]) > 10
    assert 20 < len(problem["detail"]) < 2000
    assert {name: problem.get(name) for name in evidence} == evidence
