"""The dtypes in which gradients and weights travel: what a session is told, and what it does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, WEIGHTS, Subject, assert_equal, assert_refused, lists, receipt_of
from safetensors.torch import load

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
THIRDS = {name: tensor / 3 for name, tensor in WEIGHTS.items()}
NOTHING_SAID = {"grads": None, "params": None, "difference": False}


def rounded(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.to(DTYPES[name]) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", DTYPES)
def test_weights_come_as_the_session_says_where_the_call_says_nothing(http: httpx.Client, name: str) -> None:
    subject = Subject.create(http, "sgd", params=THIRDS, lr=1.0, wire={"params": name.lower()})
    assert_equal(subject.pull(), rounded(THIRDS, name))
    stepped = {key: tensor - GRADS[key] for key, tensor in THIRDS.items()}
    assert_equal(load(subject.push().content), rounded(stepped, name))
    as_json = http.get(f"{subject.path}/params", headers={"Accept": "application/json"}).json()
    assert as_json["params"] == lists(rounded(stepped, name))
    body = {"grads": lists({key: torch.zeros_like(grad) for key, grad in GRADS.items()})}
    pushed = http.post(f"{subject.path}/steps", json=body, headers={"Idempotency-Key": "k"})
    assert pushed.json()["params"] == lists(rounded(stepped, name))


def test_what_the_call_says_wins(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=THIRDS, lr=0.0, wire={"params": "BF16"})
    for name in DTYPES:
        assert_equal(subject.pull(dtype=name), rounded(THIRDS, name))
        assert_equal(load(subject.push(pull=name.lower()).content), rounded(THIRDS, name))


def test_weights_are_kept_in_float32_whatever_travels(http: httpx.Client) -> None:
    wires: list[dict[str, str]] = [{}, {"grads": "BF16", "params": "BF16"}, {"grads": "F16", "params": "F16"}]
    subjects = [Subject.create(http, params=THIRDS, lr=0.1, wire=wire) for wire in wires]
    for _ in range(5):
        receipts = [receipt_of(subject.push()) for subject in subjects]
    unlike = [{**receipt, "session": None} for receipt in receipts]
    assert unlike[0] == unlike[1] == unlike[2]
    plain, *others = (subject.pull(dtype="f32") for subject in subjects)
    for other in others:
        assert_equal(other, plain)


@pytest.mark.parametrize("wire", [{}, {"grads": "BF16"}, {"params": "f16"}, {"grads": "f32", "params": "BF16"}])
def test_a_session_shows_what_it_was_told(http: httpx.Client, wire: dict[str, str]) -> None:
    subject = Subject.create(http, wire=wire)
    assert subject.info()["wire"] == NOTHING_SAID | {name: dtype.upper() for name, dtype in wire.items()}


def test_dtypes_can_be_changed_under_way(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=THIRDS, wire={"grads": "BF16"})
    changed = http.patch(subject.path, json={"wire": {"params": "F16"}})
    assert changed.json()["wire"] == NOTHING_SAID | {"grads": "BF16", "params": "F16"}
    assert_equal(subject.pull(), rounded(THIRDS, "F16"))
    http.patch(subject.path, json={"wire": {"params": None}})
    assert_equal(subject.pull(), THIRDS)
    assert http.patch(subject.path, json={"name": "other"}).json()["wire"]["grads"] == "BF16"


@pytest.mark.parametrize(
    ("wire", "field"),
    [
        ({"params": "F8"}, "wire.params"),
        ({"grads": "F64"}, "wire.grads"),
        ({"grads": 16}, "wire.grads"),
        ({"state": "BF16"}, "wire.state"),
        ({"difference": True}, "wire.difference"),
        ({"params": "F16", "difference": True}, "wire.difference"),
        ({"params": "BF16", "difference": "yes"}, "wire.difference"),
        ("BF16", "wire"),
    ],
)
def test_what_the_wire_does_not_carry_is_refused(http: httpx.Client, wire: Any, field: str) -> None:
    body = {"optimizer": {"name": "sgd"}, "tensors": [{"name": "w", "shape": [2]}], "wire": wire}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)


@pytest.mark.parametrize("wire", [{"difference": False}, {"params": "F16"}, {"params": None}])
def test_whether_differences_are_sent_is_fixed(http: httpx.Client, wire: dict[str, Any]) -> None:
    subject = Subject.create(http, wire={"params": "BF16", "difference": True})
    before = subject.stands()
    assert_refused(http.patch(subject.path, json={"wire": wire}), 422, "invalid-field", field="wire.difference")
    assert subject.stands() == before
    plain = Subject.create(http)
    begun = http.patch(plain.path, json={"wire": {"params": "BF16", "difference": True}})
    assert_refused(begun, 422, "invalid-field", field="wire.difference")


def test_a_session_of_doubles_stays_one(http: httpx.Client) -> None:
    doubles = {name: tensor.double() / 3 for name, tensor in WEIGHTS.items()}
    subject = Subject.create(http, "sgd", params=doubles, lr=1.0, wire={"grads": "BF16", "params": "BF16"})
    grads = {name: grad.bfloat16() for name, grad in GRADS.items()}
    stepped = {name: tensor - grads[name].double() for name, tensor in doubles.items()}
    assert_equal(load(subject.push(grads).content), rounded(stepped, "BF16"))
    assert_equal(subject.pull(dtype="f64"), stepped)
    body = {
        "optimizer": {"name": "sgd"},
        "tensors": [{"name": "w", "shape": [2], "dtype": "F64"}],
        "wire": {"params": "BF16", "difference": True},
    }
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field="wire.difference")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_judged_the_same_in_every_dtype(
    http: httpx.Client, dtype: torch.dtype, number: float
) -> None:
    bad = {name: grad.to(dtype) for name, grad in GRADS.items()}
    bad["bias"] = torch.tensor([1.0, number], dtype=dtype)
    subject = Subject.create(http, wire={"grads": "BF16"})
    before = subject.stands()
    assert_refused(subject.push(bad), 422, "nonfinite-gradients", tensors=["bias"])
    assert subject.stands() == before
    for policy, outcome in (("skip", "skipped_nonfinite"), ("zero", "applied")):
        other = Subject.create(http, nonfinite=policy)
        assert receipt_of(other.push(bad))["outcome"] == outcome


@pytest.mark.parametrize("name", ["BF16", "F16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_over_a_narrow_wire_ends_near_training_over_a_wide_one(
    http: httpx.Client, optimizer: str, name: str
) -> None:
    """Logistic regression of 20 weights: the loss is the same to a hundredth, the weights to a hundredth of the way."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 20, generator=generator)
    labels = (inputs @ torch.randn(20, generator=generator) > 0).float()

    def train(wire: dict[str, str]) -> tuple[float, torch.Tensor]:
        subject = Subject.create(http, optimizer, params={"w": torch.zeros(20)}, lr=0.1, wire=wire)
        held = torch.zeros(20)
        for step in range(100):
            held.requires_grad_(True)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ held, labels)
            (grad,) = torch.autograd.grad(loss, held)
            reply = subject.push({"w": grad.to(DTYPES[wire.get("grads", "F32")])}, key=str(step))
            held = load(reply.content)["w"].float()
        return float(loss.detach()), subject.pull(dtype="f32")["w"]

    (loss, weights), (near, close) = train({}), train({"grads": name, "params": name})
    assert abs(near - loss) < 0.01 * loss
    assert (close - weights).norm() < 0.01 * weights.norm()
