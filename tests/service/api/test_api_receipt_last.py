"""`receipt=last`: weights that leave while their step is being taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from api_subject import SAFETENSORS, Subject, assert_equal, assert_refused

from raw_safetensors import DTYPES, tensor_file

GENERATOR = torch.Generator().manual_seed(1)
WEIGHTS = {
    "a": torch.randn(1_500_000, generator=GENERATOR),
    "b": torch.randn(40, 50_000, generator=GENERATOR),
    "bias": torch.zeros(9),
}
GRADS = {name: torch.randn(tensor.shape, generator=GENERATOR) for name, tensor in WEIGHTS.items()}
BUFFER = {"seen": torch.ones(3)}
GROUPS = [{"name": "no_decay", "match": ["bias"], "weight_decay": 0.0}]


def push(subject: Subject, key: str, grads: dict[str, torch.Tensor] = GRADS, **query: str) -> httpx.Response:
    headers = {**SAFETENSORS, "Idempotency-Key": key}
    params = {"receipt": "last", **query}
    return subject.http.post(f"{subject.path}/steps", content=tensor_file(grads), headers=headers, params=params)


def read(reply: httpx.Response) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and receipt, read from the bytes."""
    assert reply.status_code == 200, reply.text[:500]
    length = int.from_bytes(reply.content[:8], "little")
    header, payload = json.loads(reply.content[8 : 8 + length]), bytearray(reply.content[8 + length :])
    assert "receipt" not in header.pop("__metadata__", {})
    assert list(header)[-1] == "#receipt"
    start, stop = header.pop("#receipt")["data_offsets"]
    assert stop == len(payload)
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        elements = torch.frombuffer(payload[begin:end], dtype=dtypes[entry["dtype"]])
        tensors[name] = elements.view(entry["shape"])
    return tensors, json.loads(payload[start:])


@pytest.fixture
def pair(http: httpx.Client) -> Iterator[tuple[Subject, Subject]]:
    """Two sessions that are the same."""
    subjects = [
        Subject.create(http, "adamw", params=WEIGHTS | BUFFER, buffers=["seen"], groups=GROUPS, lr=0.1)
        for _ in range(2)
    ]
    yield subjects[0], subjects[1]
    for subject in subjects:
        http.delete(subject.path)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_it_says_and_does_what_a_push_with_the_receipt_first_does(pair: tuple[Subject, Subject], dtype: str) -> None:
    last, first = pair
    for step in range(1, 4):
        weights, receipt = read(push(last, f"k{step}", GRADS | BUFFER, pull=dtype))
        first.push(GRADS | BUFFER, key=f"k{step}")
        wanted = first.pull(dtype=dtype)
        assert_equal(weights, wanted)
        row, other = last.steps()[-1], first.steps()[-1]
        for name in ("step", "outcome", "lr", "grad_norm", "update_norm", "param_norm", "clip_scale"):
            assert receipt[name] == row[name] == other[name], name
        assert receipt["step"] == step


def test_the_etag_is_of_the_new_weights(pair: tuple[Subject, Subject]) -> None:
    assert push(pair[0], "k").headers["etag"] == '"1.0"' == pair[0].etag()


def test_a_retry_gets_the_first_receipt(pair: tuple[Subject, Subject]) -> None:
    _, first = read(push(pair[0], "k"))
    weights, again = read(push(pair[0], "k"))
    assert again == {**first, "duplicate": True}
    assert_equal(weights, pair[0].pull())


def test_a_step_that_is_skipped_brings_the_weights_as_they_are(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=WEIGHTS, lr=0.1, nonfinite="skip")
    weights, receipt = read(push(subject, "k", {**GRADS, "bias": torch.full((9,), float("nan"))}))
    assert receipt["outcome"] == "skipped_nonfinite"
    assert_equal(weights, WEIGHTS)
    http.delete(subject.path)


def test_a_push_that_is_refused_is_answered_with_a_problem(pair: tuple[Subject, Subject]) -> None:
    reply = push(pair[0], "k", {**GRADS, "a": torch.full((1_500_000,), float("inf"))})
    assert_refused(reply, 422, "nonfinite-gradients", tensors=["a"])
    assert pair[0].etag() == '"0.0"'


@pytest.mark.parametrize("optimizer", ["muon", "prodigy", "adafactor"])
def test_optimizers_that_look_at_more_than_an_element_reply_so_too(http: httpx.Client, optimizer: str) -> None:
    grads = {"w": GRADS["b"][:, :10_000].clone()}
    subject = Subject.create(http, optimizer, params={"w": WEIGHTS["b"][:, :10_000].clone()})
    weights, receipt = read(push(subject, "k", grads))
    assert receipt["outcome"] == "applied"
    assert_equal(weights, subject.pull())
    http.delete(subject.path)


def test_small_sessions_reply_so_too(subject: Subject) -> None:
    headers = {**SAFETENSORS, "If-Match": subject.etag()}
    content = tensor_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    reply = subject.http.post(
        f"{subject.path}/steps", content=content, headers=headers, params={"receipt": "last"}
    )  # fmt: skip
    weights, receipt = read(reply)
    assert receipt["step"] == 2
    assert_equal(weights, subject.pull())


@pytest.mark.parametrize("query", [{"receipt": "middle"}, {"receipt": ""}, {"pull": "none"}])
def test_what_cannot_be_is_refused_before_the_step(pair: tuple[Subject, Subject], query: dict[str, str]) -> None:
    assert_refused(push(pair[0], "k", **query), 422, "invalid-field", field="receipt")
    assert pair[0].etag() == '"0.0"'
