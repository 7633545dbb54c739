"""What a step does besides stepping: policies for what is not finite, overrides, changes, and their records."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, NO_DECAY, WEIGHTS, Subject, assert_equal, assert_refused, lists, receipt_of

NAN, INF = float("nan"), float("inf")
BROKEN = {"weight": torch.tensor([[0.5, NAN, 0.0], [INF, 0.25, -INF]]), "bias": GRADS["bias"]}
MENDED = {"weight": torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.25, 0.0]]), "bias": GRADS["bias"]}


def test_skip_counts_and_records_and_changes_nothing_else(http: httpx.Client) -> None:
    subject = Subject.create(http, nonfinite="skip")
    subject.push()
    before = subject.stands()
    receipt = receipt_of(subject.push(BROKEN, key="k", loss="7"))
    assert (receipt["outcome"], receipt["step"], receipt["base_step"]) == ("skipped_nonfinite", 1, 1)
    assert (receipt["loss"], receipt["grad_norm"], receipt["update_norm"]) == (7, None, 0)
    after = subject.stands()
    assert after["session"] == {**before["session"], "skipped": 1}
    assert {name: after[name] for name in ("params", "state", "steps")} == {
        name: before[name] for name in ("params", "state", "steps")
    }
    assert [event["kind"] for event in after["events"]] == ["created", "skipped_nonfinite"]
    retry = receipt_of(subject.push(BROKEN, key="k", loss="7"))
    assert retry == {**receipt, "duplicate": True}
    assert subject.info()["skipped"] == 1
    assert receipt_of(subject.push())["step"] == 2


def test_zero_steps_as_if_those_elements_had_been_zero(http: httpx.Client) -> None:
    broken, mended = Subject.create(http, nonfinite="zero"), Subject.create(http)
    ours, theirs = receipt_of(broken.push(BROKEN)), receipt_of(mended.push(MENDED))
    assert ours == {**theirs, "session": ours["session"]}
    assert_equal(broken.pull(), mended.pull())


def test_the_policy_can_be_changed(http: httpx.Client) -> None:
    subject = Subject.create(http)
    assert_refused(subject.push(BROKEN), 422, "nonfinite-gradients", tensors=["weight"])
    assert http.patch(subject.path, json={"nonfinite": "skip"}).json()["nonfinite"] == "skip"
    assert receipt_of(subject.push(BROKEN))["outcome"] == "skipped_nonfinite"


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_an_override_holds_for_one_step_and_is_recorded_with_it(http: httpx.Client, kind: str) -> None:
    groups = [{"name": "biases", "match": ["bias"]}]
    subject = Subject.create(http, "sgd", groups=groups, lr=1.0)
    overrides = {"lr": 0.5, "groups": {"biases": {"lr": 0.25}}}
    if kind == "json":
        body = {"grads": lists(GRADS), "hyperparameters": overrides}
        reply = http.post(f"{subject.path}/steps", json=body, headers={"Idempotency-Key": "k"})
    else:
        reply = subject.push(hyperparameters=json.dumps(overrides))
    assert receipt_of(reply)["lr"] == 0.5
    expected = {"weight": WEIGHTS["weight"] - 0.5 * GRADS["weight"], "bias": WEIGHTS["bias"] - 0.25 * GRADS["bias"]}
    assert_equal(subject.pull(), expected)
    assert {hyper["lr"] for hyper in subject.info()["hyperparameters"].values()} == {1.0}
    assert receipt_of(subject.push())["lr"] == 1.0
    assert_equal(subject.pull(), {name: tensor - GRADS[name] for name, tensor in expected.items()})
    assert [row["hyperparameters"] for row in subject.steps()] == [overrides, None]


def test_a_change_is_an_event_and_is_inherited_where_nothing_else_was_said(http: httpx.Client) -> None:
    groups = [{"name": "own", "match": ["bias"], "lr": 0.5}]
    subject = Subject.create(http, "sgd", groups=groups, lr=1.0)
    changed = http.patch(subject.path, json={"name": "new", "optimizer": {"lr": 2.0, "weight_decay": 0.5}}).json()
    assert changed["name"] == "new"
    lr = {name: hyper["lr"] for name, hyper in changed["hyperparameters"].items()}
    decay = {name: hyper["weight_decay"] for name, hyper in changed["hyperparameters"].items()}
    assert (lr, decay) == ({"own": 0.5, "default": 2.0}, {"own": 0.5, "default": 0.5})
    http.patch(subject.path, json={"groups": [{"name": "own", "lr": 0.25}]})
    assert subject.info()["hyperparameters"]["own"]["lr"] == 0.25
    assert subject.etag() == '"0.0"'
    events = subject.events()
    assert [event["kind"] for event in events] == ["created", "changed", "changed"]
    assert events[1]["detail"] == {"name": "new", "optimizer": {"lr": 2.0, "weight_decay": 0.5}}
    assert events[2]["detail"] == {"groups": [{"name": "own", "lr": 0.25}]}
    subject.push({"weight": GRADS["weight"] * 0, "bias": GRADS["bias"]})
    assert_equal(
        subject.pull(),
        {"weight": WEIGHTS["weight"] * 0, "bias": WEIGHTS["bias"] - 0.25 * (GRADS["bias"] + 0.5 * WEIGHTS["bias"])},
    )


def test_the_receipt_tells_what_the_step_did(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=0.5)
    receipt = receipt_of(subject.push(loss="0.75", num_examples="64", worker="w0"))
    flat = torch.cat([GRADS[name].flatten().double() for name in GRADS])
    new = torch.cat([tensor.flatten().double() for tensor in subject.pull().values()])
    norms = {"grad_norm": flat.norm().item(), "update_norm": 0.5 * flat.norm().item(), "param_norm": new.norm().item()}
    assert {name: receipt[name] for name in norms} == pytest.approx(norms, rel=1e-6)
    told = {"step": 1, "base_step": 0, "outcome": "applied", "lr": 0.5, "loss": 0.75, "clip_scale": 1}
    assert {name: receipt[name] for name in told} == told
    (row,) = subject.steps()
    assert {name: row[name] for name in receipt} == receipt
    assert (row["num_examples"], row["worker"]) == (64, "w0")
    assert http.get(f"{subject.path}/steps/1").json() == row


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", {"lr": 0.1, "momentum": 0.9}), ("adam", {"lr": 0.1}), ("adamw", {"lr": 0.1}), ("rmsprop", {"lr": 0.1})],
    ids=["sgd", "adam", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_torchs_own(http: httpx.Client, optimizer: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in WEIGHTS.items()}
    subject = Subject.create(http, optimizer, params=weights, **settings)
    params = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    names = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    reference = getattr(torch.optim, names[optimizer])(params.values(), **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        grads = {name: torch.randn(t.shape, generator=generator, dtype=dtype) for name, t in weights.items()}
        subject.push(grads)
        for name, param in params.items():
            param.grad = grads[name]
        reference.step()
    pulled = subject.pull()
    for name, param in params.items():
        assert pulled[name].dtype == dtype
        torch.testing.assert_close(pulled[name], param.detach(), rtol=1e-5, atol=1e-6)


def test_a_group_keeps_its_own_hyperparameters(http: httpx.Client) -> None:
    subject = Subject.create(http, "adamw", groups=[NO_DECAY], lr=0.5, weight_decay=0.5)
    subject.push({name: tensor * 0 for name, tensor in GRADS.items()})
    assert_equal(subject.pull(), {"bias": WEIGHTS["bias"], "weight": WEIGHTS["weight"] * 0.75})
