"""Weights that come as the difference to what the client holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
import torch
from api_subject import GRADS, JSON, SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, lists
from raw_socket import connected, head
from safetensors.torch import load

from raw_safetensors import tensor_file
from reaching import connect

WIRE = {"grads": "BF16", "params": "BF16", "difference": True}
NOTHING = "none"
SHAPE = (3_000_000,)  # more than sockets hold of a reply that nobody reads
LARGE_GRADS = {"w": torch.ones(SHAPE).bfloat16()}


@dataclass
class Holder:
    """A client, as the reference says that one works.

    Attributes:
      params: what it holds.   token: what the server calls that.   came: how each reply came.
    """

    subject: Subject
    params: dict[str, torch.Tensor] = field(default_factory=dict)
    token: str = NOTHING
    came: list[str] = field(default_factory=list)

    def push(self, grads: dict[str, torch.Tensor] = GRADS, *, key: str | None = None, **query: str) -> httpx.Response:
        headers = {**SAFETENSORS, "Idempotency-Key": key or uuid4().hex}
        query = {"holds": self.token} | query
        content = tensor_file(grads)
        return self.subject.http.post(f"{self.subject.path}/steps", content=content, headers=headers, params=query)

    def request(self, *, key: str) -> bytes:
        """A push of LARGE_GRADS by hand."""
        path, content = f"{self.subject.path}/steps?holds={self.token}", tensor_file(LARGE_GRADS)
        headers = {"content_type": SAFETENSORS["Content-Type"], "idempotency_key": key}
        return head("POST", path, len(content), **headers) + content

    def step(self, grads: dict[str, torch.Tensor] = GRADS, *, key: str | None = None) -> None:
        self.take(self.push(grads, key=key))

    def take(self, reply: httpx.Response) -> None:
        assert reply.status_code == 200, reply.text
        metadata, sent = metadata_of(reply), load(reply.content)
        if "difference" in metadata:
            assert metadata["difference"] == self.token
            assert {tensor.dtype for tensor in sent.values()} == {torch.bfloat16}
            self.params = {name: self.params[name] + tensor.float() for name, tensor in sent.items()}
        else:
            assert {tensor.dtype for tensor in sent.values()} == {torch.float32}
            self.params = sent
        self.token = metadata.get("holds", NOTHING)
        self.came.append("difference" if "difference" in metadata else "whole")

    def distance(self) -> float:
        """The largest difference to the session's weights."""
        theirs = self.subject.pull(dtype="f32")
        return max(float((theirs[name] - tensor).abs().max()) for name, tensor in self.params.items())


def metadata_of(reply: httpx.Response) -> dict[str, Any]:
    length = int.from_bytes(reply.content[:8], "little")
    metadata: dict[str, Any] = json.loads(reply.content[8 : 8 + length])["__metadata__"]
    return metadata


@pytest.fixture
def holder(http: httpx.Client) -> Iterator[Holder]:
    holder = Holder(Subject.create(http, lr=0.01, wire=WIRE))
    yield holder
    http.delete(holder.subject.path)


def test_first_come_whole_weights_and_then_differences(holder: Holder) -> None:
    for _ in range(4):
        holder.step()
    assert holder.came == ["whole", "difference", "difference", "difference"]


def test_a_difference_is_half_as_long(http: httpx.Client) -> None:
    grads = {"w": torch.ones(100_000)}
    holder = Holder(Subject.create(http, params={"w": torch.randn(100_000)}, wire=WIRE))
    whole = holder.push(grads)
    holder.take(whole)
    assert len(holder.push(grads).content) < 0.51 * len(whole.content)


def test_rounding_errors_do_not_add_up(http: httpx.Client) -> None:
    """Over 200 steps they stay below one rounding of one step's way; plain bfloat16 rounds the weights themselves."""
    generator = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(500, generator=generator) + 4}
    holder = Holder(Subject.create(http, "adam", params=params, lr=1e-3, wire=WIRE))
    worst = 0.0
    for step in range(200):
        holder.step({"w": torch.randn(500, generator=generator)})
        worst = max(worst, holder.distance()) if step % 20 == 19 else worst
    plain = holder.subject.pull(dtype="bf16")["w"].float() - holder.subject.pull(dtype="f32")["w"]
    assert holder.came == ["whole"] + ["difference"] * 199
    assert worst <= 1e-2 * 2**-8  # no step of Adam is longer than ten times its rate
    assert float(plain.abs().max()) > 100 * worst


def test_what_two_hold_does_not_mix(holder: Holder) -> None:
    other = Holder(holder.subject)
    for _ in range(3):
        holder.step()
        other.step()
    holder.step()
    holder.step()
    assert holder.came == ["whole"] * 4 + ["difference"]
    assert other.came == ["whole"] * 3
    assert holder.distance() < 1e-4


def test_pulls_and_pushes_that_show_nothing_leave_what_is_held(holder: Holder) -> None:
    holder.step()
    holder.subject.pull()
    assert {tensor.dtype for tensor in load(holder.subject.push().content).values()} == {torch.bfloat16}
    holder.subject.push(pull="none")
    holder.step()
    assert holder.came == ["whole", "difference"]
    assert holder.distance() < 1e-3


@pytest.mark.parametrize("token", ["none", "0123456789abcdef", "x" * 500, "é"])
def test_an_unknown_token_is_answered_with_whole_weights(holder: Holder, token: str) -> None:
    holder.step()
    holder.token = token
    holder.step()
    holder.step()
    assert holder.came == ["whole", "whole", "difference"]


def test_weights_that_are_put_are_sent_whole(holder: Holder) -> None:
    holder.step()
    put = holder.subject.http.put(f"{holder.subject.path}/params", json={"params": lists(WEIGHTS)})
    assert put.status_code == 200
    holder.step()
    holder.step()
    assert holder.came == ["whole", "whole", "difference"]


def test_another_optimizer_and_other_state_leave_what_is_held(holder: Holder) -> None:
    holder.step()
    put = holder.subject.http.put(f"{holder.subject.path}/optimizer", json={"name": "sgd", "lr": 0.1})
    assert put.status_code == 200
    holder.step()
    assert holder.came == ["whole", "difference"]
    assert holder.distance() < 1e-2


def test_a_retry_is_answered_with_whole_weights(holder: Holder) -> None:
    holder.step()
    lost = holder.push(key="k")
    assert "difference" in metadata_of(lost)
    holder.step(key="k")
    holder.step()
    assert holder.came == ["whole", "whole", "difference"]
    assert holder.subject.etag() == '"3.0"'


def test_a_push_that_is_refused_leaves_what_is_held(holder: Holder) -> None:
    holder.step()
    bad = {name: torch.full_like(grad, torch.nan) for name, grad in GRADS.items()}
    assert_refused(holder.push(bad), 422, "nonfinite-gradients")
    holder.step()
    assert holder.came == ["whole", "difference"]


def test_a_push_that_is_no_step_brings_a_difference_of_nothing(http: httpx.Client) -> None:
    holder = Holder(Subject.create(http, wire=WIRE, nonfinite="skip"))
    holder.step()
    before = holder.params
    holder.step({name: torch.full_like(grad, torch.nan) for name, grad in GRADS.items()})
    assert holder.came == ["whole", "difference"]
    assert_equal(holder.params, before)


def test_buffers_and_frozen_tensors_are_among_the_differences(http: httpx.Client) -> None:
    params = WEIGHTS | {"mean": torch.tensor([0.1, 0.2]), "embed": torch.ones(3)}
    holder = Holder(Subject.create(http, params=params, buffers=["mean"], frozen=["embed"], wire=WIRE))
    holder.step()
    holder.step(GRADS | {"mean": torch.tensor([0.3, 0.5])})
    assert holder.came == ["whole", "difference"]
    assert holder.params.keys() == params.keys()
    assert holder.distance() < 1e-2


def test_weights_that_overflow_are_sent_as_they_are(http: httpx.Client) -> None:
    holder = Holder(Subject.create(http, "sgd", params={"w": torch.tensor([3e38, 1.0])}, lr=1e18, wire=WIRE))
    holder.step({"w": torch.zeros(2)})
    holder.step({"w": torch.tensor([-3e20, 0.0])})
    assert holder.params["w"].tolist() == [torch.inf, 1.0]
    holder.step({"w": torch.zeros(2)})
    assert holder.came == ["whole", "difference", "whole"]


def test_a_receipt_may_come_behind_a_difference(holder: Holder) -> None:
    holder.step()
    reply = holder.push(receipt="last")
    assert metadata_of(reply)["difference"] == holder.token


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ({"holds": ""}, "application/vnd.safetensors"),
        ({"holds": "none", "pull": "bf16"}, "application/vnd.safetensors"),
        ({"holds": "none", "pull": "none"}, "application/vnd.safetensors"),
        ({"holds": "none"}, "application/json"),
    ],
)
def test_what_cannot_be_a_difference_is_refused_before_the_step(
    holder: Holder, query: dict[str, str], accept: str
) -> None:
    before = holder.subject.stands()
    headers = {**SAFETENSORS, "Idempotency-Key": "k", "Accept": accept}
    path, content = f"{holder.subject.path}/steps", tensor_file(GRADS)
    reply = holder.subject.http.post(path, content=content, headers=headers, params=query)
    assert_refused(reply, 422, "invalid-field", field="holds")
    in_json = holder.subject.http.post(path, json={"grads": lists(GRADS)}, headers={**JSON, "Idempotency-Key": "k"})
    assert in_json.status_code == 200  # the key was not used up
    assert holder.subject.stands()["session"]["step"] == before["session"]["step"] + 1


def test_a_session_that_keeps_no_account_cannot_be_asked(subject: Subject, unchanged: None) -> None:
    assert_refused(Holder(subject).push(), 422, "invalid-field", field="holds")


@pytest.fixture
def large(http: httpx.Client) -> Iterator[Holder]:
    generator = torch.Generator().manual_seed(0)
    subject = Subject.create(http, params={"w": torch.randn(SHAPE, generator=generator)}, lr=0.01, wire=WIRE)
    yield Holder(subject)
    http.delete(subject.path)


def test_large_differences_come_too(large: Holder) -> None:
    for _ in range(3):
        large.step(LARGE_GRADS)
    assert large.came == ["whole", "difference", "difference"]
    assert large.distance() < 1e-4


def test_a_reply_that_was_cut_off_leaves_nothing_to_build_on(server_url: str, large: Holder) -> None:
    large.step(LARGE_GRADS)
    with connected(server_url) as connection:
        connection.sendall(large.request(key="cut"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    while not large.came[1:]:
        large.step(LARGE_GRADS, key="cut")
    assert large.came == ["whole", "whole"]
    assert large.distance() == 0
    assert large.subject.etag() == '"2.0"'


def test_while_a_reply_is_not_read_another_is_whole_and_has_no_token(server_url: str, large: Holder) -> None:
    large.step(LARGE_GRADS)
    with connect(server_url, receive_bytes=4096) as connection:
        connection.sendall(large.request(key="slow"))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        other = Holder(large.subject)
        other.step(LARGE_GRADS)
        assert (other.came, other.token) == (["whole"], "none")
        assert other.distance() == 0
