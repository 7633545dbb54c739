"""Clipping, as a session does it between a push and its step, against torch's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients, scaled
from api_subject import GRADS, JSON, WEIGHTS, Subject, Tensors, assert_equal, assert_refused, lists, receipt_of
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

Parameters = list[torch.Tensor]


def by_rows(agc: float, eps: float = 1e-3) -> Callable[[Parameters], None]:
    """Brock et al. 2021, equation 3: a row of a matrix, or a whole vector, against its own weights."""

    def clip_(params: Parameters) -> None:
        for param in params:
            grad = param.grad
            assert grad is not None
            lengths = (param.detach(), grad)
            weight, length = (t.norm(dim=-1, keepdim=True) if t.dim() > 1 else t.norm() for t in lengths)
            most = agc * weight.clamp(min=eps)
            grad.mul_((most / length.clamp(min=1e-6)).clamp(max=1.0))

    return clip_


def each_by_itself(params: Parameters) -> None:
    for param in params:
        clip_grad_norm_([param], 1.0)


class Case(NamedTuple):
    clip: Mapping[str, Any]
    torchs: Callable[[Parameters], Any]


CASES: Mapping[str, Case] = {
    "norm": Case({"max_norm": 1.0}, lambda params: clip_grad_norm_(params, 1.0)),
    "norm 1": Case({"max_norm": 2.0, "norm_type": 1}, lambda params: clip_grad_norm_(params, 2.0, 1.0)),
    "norm 3": Case({"max_norm": 1.0, "norm_type": 3.0}, lambda params: clip_grad_norm_(params, 1.0, 3.0)),
    "norm inf": Case({"max_norm": 0.5, "norm_type": "inf"}, lambda params: clip_grad_norm_(params, 0.5, math.inf)),
    "norm by tensor": Case({"max_norm": 1.0, "per": "tensor"}, each_by_itself),
    "value": Case({"clip_value": 0.25}, lambda params: clip_grad_value_(params, 0.25)),
    "adaptive": Case({"agc": 0.1}, by_rows(0.1)),
    "adaptive, with a floor": Case({"agc": 0.1, "eps": 5.0}, by_rows(0.1, 5.0)),
}


def norm(grads: Tensors) -> float:
    return float(torch.cat([grad.flatten().double() for grad in grads.values()]).norm())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_clipped_session_is_a_torch_optimizer_with_its_clipping(http: httpx.Client, case: Case) -> None:
    subject = Subject.create(http, "sgd", params=PRECISE, lr=0.1, momentum=0.9, clip=dict(case.clip))
    local = Local(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    for grads in gradients(10):
        receipt = receipt_of(subject.push(grads))
        local.hand(grads)
        case.torchs(list(local.params.values()))
        local.optimizer.step()
        kept = {name: param.grad for name, param in local.params.items() if param.grad is not None}
        smallest = min(float((kept[name] / grads[name]).min()) for name in grads)
        assert receipt["grad_norm"] == pytest.approx(norm(grads), rel=1e-12)
        assert receipt["clip_scale"] == pytest.approx(smallest, rel=1e-6)
        assert receipt["clip_scale"] < 1
    assert_close(subject.pull(), local.weights, rtol=1e-6, atol=1e-8)
    assert [row["clip_scale"] for row in subject.steps()][-1] == receipt["clip_scale"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_within_the_limit_are_left_as_they_are_to_the_bit(http: httpx.Client, case: Case) -> None:
    clipped, plain = (Subject.create(http, "adamw", clip=clip) for clip in (dict(case.clip), None))
    small = scaled(GRADS, 1e-3)
    receipts = [receipt_of(subject.push(small)) for subject in (clipped, plain)]
    assert [receipt["clip_scale"] for receipt in receipts] == [1.0, 1.0]
    assert_equal(clipped.pull(), plain.pull())


def test_clip_scale_of_a_norm_is_max_norm_over_the_norm(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", clip={"max_norm": 0.5})
    receipt = receipt_of(subject.push())
    assert receipt["grad_norm"] == pytest.approx(norm(GRADS), rel=1e-6)
    assert receipt["clip_scale"] == pytest.approx(0.5 / norm(GRADS), rel=1e-5)


def test_clip_can_be_changed_and_ended(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", clip={"max_norm": 0.5})
    assert subject.info()["clip"] == {"max_norm": 0.5, "norm_type": 2.0, "per": "all"}
    assert receipt_of(subject.push())["clip_scale"] < 0.5
    changed = http.patch(subject.path, json={"clip": {"clip_value": 1.5}}).json()
    assert changed["clip"] == {"clip_value": 1.5}
    assert receipt_of(subject.push())["clip_scale"] == 0.5
    http.patch(subject.path, json={"name": "new"})
    assert receipt_of(subject.push())["clip_scale"] == 0.5
    before = subject.pull()
    assert http.patch(subject.path, json={"clip": None, "optimizer": {"lr": 1.0}}).json()["clip"] is None
    assert receipt_of(subject.push())["clip_scale"] == 1.0
    assert_equal(subject.pull(), {name: tensor - GRADS[name] for name, tensor in before.items()})


def test_buffers_of_no_gradient_do_not_count_for_a_norm(http: httpx.Client) -> None:
    body = {
        "optimizer": {"name": "sgd"},
        "tensors": [{"name": "w", "shape": [2]}, {"name": "mean", "shape": [2]}, {"name": "fixed", "shape": [3]}],
        "buffers": ["mean"],
        "frozen": ["fixed"],
        "clip": {"max_norm": 2.5},
    }
    path = http.post("/v1/sessions", json=body).headers["location"]
    push = {"grads": {"w": [3.0, 4.0]}, "buffers": {"mean": [1e6, 1e6]}}
    receipt = receipt_of(http.post(f"{path}/steps", json=push, headers={"If-Match": '"0.0"'}))
    assert (receipt["grad_norm"], receipt["clip_scale"]) == (5.0, pytest.approx(0.5, rel=1e-5))


WRONG: list[tuple[Any, str]] = [
    (1.0, "clip"),
    ({}, "clip"),
    ({"norm_type": 2.0}, "clip"),
    ({"max_norm": 0}, "clip.max_norm"),
    ({"max_norm": -1.0}, "clip.max_norm"),
    ({"max_norm": "1"}, "clip.max_norm"),
    ({"max_norm": 1.0, "norm_type": 0.5}, "clip.norm_type"),
    ({"max_norm": 1.0, "norm_type": "2"}, "clip.norm_type"),
    ({"max_norm": 1.0, "norm_type": True}, "clip.norm_type"),
    ({"max_norm": 1.0, "per": "group"}, "clip.per"),
    ({"max_norm": 1.0, "clip_value": 1.0}, "clip.clip_value"),
    ({"clip_value": 0}, "clip.clip_value"),
    ({"clip_value": 1e30}, "clip.clip_value"),
    ({"agc": 0.0}, "clip.agc"),
    ({"agc": 0.01, "eps": 0}, "clip.eps"),
    ({"agc": 0.01, "per": "tensor"}, "clip.per"),
]


@pytest.mark.parametrize(("clip", "field"), WRONG, ids=lambda case: str(case)[:50])
def test_a_clip_that_is_none_is_refused_by_its_field(http: httpx.Client, clip: Any, field: str) -> None:
    subject = Subject.create(http, clip={"max_norm": 1.0})
    before, sessions = subject.stands(), http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "clip": clip}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions
    change = json.dumps({"name": "new", "clip": clip})
    assert_refused(http.patch(subject.path, content=change, headers=JSON), 422, "invalid-field", field=field)
    assert subject.stands() == before
