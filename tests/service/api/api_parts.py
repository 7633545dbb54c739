"""Pushes in parts, and a session to push them to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import torch
from api_subject import JSON, SAFETENSORS, Subject, Tensors, lists

from raw_safetensors import tensor_file

# Layout order is that of the names: the biases have a group of their own, and `default` comes last.
PARAMS = {
    "a.bias": torch.tensor([0.5, -0.5, 1.0]),
    "b.bias": torch.tensor([0.25]),
    "c.weight": torch.arange(12.0).view(3, 4) / 8 - 1,
    "d.weight": torch.arange(6.0).view(2, 3) / 4,
    "e.empty": torch.zeros(0, 2),
    "f.weight": torch.tensor([[2.0, -1.0]]),
}
GROUPS = [{"name": "biases", "match": ["*.bias"], "weight_decay": 0.0}]


def parts(grads: Tensors, *groups: str) -> list[dict[str, torch.Tensor]]:
    """Gradients by the first letters of their names: `parts(grads, "ab", "c")` are two parts."""
    return [{name: grad for name, grad in grads.items() if name[0] in letters} for letters in groups]


def send(
    subject: Subject,
    grads: Tensors,
    contribution: str = "c",
    *,
    complete: bool = False,
    kind: str = "safetensors",
    query: Mapping[str, str] | None = None,
    buffers: Tensors | None = None,
    key: str | None = None,
    if_match: str | None = None,
    **facts: Any,
) -> httpx.Response:
    """Push a part; one that completes gets a key of its own unless it names one, or what it builds on."""
    if complete and key is None and if_match is None:
        key = uuid4().hex
    headers = {name: value for name, value in {"Idempotency-Key": key, "If-Match": if_match}.items() if value}
    asked = {"contribution": contribution, **({"complete": "true"} if complete else {}), **(query or {})}
    if kind == "json":
        said = {"grads": lists(grads), **facts, **({} if buffers is None else {"buffers": lists(buffers)})}
        content, headers = json.dumps(said).encode(), headers | JSON
    else:
        content = tensor_file({**grads, **(buffers or {})}, {name: json.dumps(value) for name, value in facts.items()})
        headers |= SAFETENSORS
    return subject.http.post(f"{subject.path}/steps", content=content, headers=headers, params=asked)


def complete(subject: Subject, grads: Tensors | None = None, contribution: str = "c", **said: Any) -> httpx.Response:
    """Push the last part."""
    return send(subject, grads or {}, contribution, complete=True, **said)
