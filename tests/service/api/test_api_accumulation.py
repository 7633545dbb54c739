"""Several pushes that make one step."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients, scaled
from api_subject import GRADS, WEIGHTS, Subject, Tensors, assert_equal, assert_refused, lists, receipt_of

NAN = {**GRADS, "bias": torch.tensor([float("nan"), 1.0])}


def outcomes(*replies: httpx.Response) -> list[str]:
    return [receipt_of(reply)["outcome"] for reply in replies]


def total(grads: list[dict[str, torch.Tensor]], divisor: int = 1) -> dict[str, torch.Tensor]:
    return {name: torch.stack([g[name] for g in grads]).sum(0) / divisor for name in WEIGHTS}


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
def test_pushes_make_one_step_with_their_mean_or_their_sum(http: httpx.Client, mean: bool) -> None:
    accumulate = {"steps": 4, "mean": mean}
    subject = Subject.create(http, "adamw", params=PRECISE, lr=0.1, eps=0.1, accumulate=accumulate)
    local = Local(lambda groups: torch.optim.AdamW(groups, lr=0.1, eps=0.1))
    pushed = list(gradients(12))
    for at in range(0, 12, 4):
        four = pushed[at : at + 4]
        assert outcomes(*(subject.push(grads) for grads in four)) == ["buffered"] * 3 + ["applied"]
        local.step(total(four, 4 if mean else 1))
    assert_close(subject.pull(), local.weights)
    assert subject.info()["accumulate"] == accumulate
    assert [row["step"] for row in subject.steps()] == [1, 2, 3]


def test_a_buffered_push_changes_nothing_that_can_be_pulled(http: httpx.Client) -> None:
    subject = Subject.create(http, "adamw", accumulate={"steps": 3})
    for _ in range(3):
        subject.push()
    before = subject.stands()
    receipts = [receipt_of(subject.push(loss="0.5")) for _ in range(2)]
    assert subject.stands() == before
    told = {"step": 1, "base_step": 1, "outcome": "buffered", "loss": 0.5, "grad_norm": None, "update_norm": 0.0}
    assert [{name: receipt[name] for name in told} for receipt in receipts] == [told, told]


def test_the_history_has_one_line_for_the_step_that_pushes_make(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", accumulate={"steps": 2})
    receipts = [receipt_of(subject.push(loss=str(loss))) for loss in (4, 3, 2, 1)]
    rows = subject.steps()
    assert [(row["step"], row["loss"], row["outcome"]) for row in rows] == [(1, 3, "applied"), (2, 1, "applied")]
    assert rows[1]["grad_norm"] == receipts[3]["grad_norm"] == pytest.approx(_norm(GRADS))
    assert [event["kind"] for event in subject.events()] == ["created"]


def _norm(grads: Tensors) -> float:
    return float(torch.cat([grad.flatten() for grad in grads.values()]).norm())


def test_the_retry_of_a_buffered_push_returns_its_receipt_and_adds_nothing(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, accumulate={"steps": 3, "mean": False})
    first = receipt_of(subject.push(key="a"))
    for _ in range(4):
        assert receipt_of(subject.push(key="a")) == {**first, "duplicate": True}
    assert_refused(subject.push(scaled(GRADS, 2), key="a"), 422, "key-reused")
    second = receipt_of(subject.push(scaled(GRADS, 2), key="b"))
    assert receipt_of(subject.push(key="a")) == {**first, "duplicate": True}
    third = receipt_of(subject.push(scaled(GRADS, 4), key="c"))
    assert [receipt["outcome"] for receipt in (first, second, third)] == ["buffered", "buffered", "applied"]
    assert_equal(subject.pull(), {name: WEIGHTS[name] - 7 * GRADS[name] for name in WEIGHTS})
    for key, factor, receipt in (("b", 2, second), ("c", 4, third)):
        assert receipt_of(subject.push(scaled(GRADS, factor), key=key)) == {**receipt, "duplicate": True}
    assert outcomes(subject.push(), subject.push()) == ["buffered", "buffered"]


def test_a_push_that_is_not_finite_is_skipped_and_does_not_count(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, nonfinite="skip", accumulate={"steps": 2})
    pushes = [subject.push(NAN), subject.push(), subject.push(NAN), subject.push(NAN), subject.push(scaled(GRADS, 3))]
    skipped = "skipped_nonfinite"
    assert outcomes(*pushes) == [skipped, "buffered", skipped, skipped, "applied"]
    assert_equal(subject.pull(), {name: WEIGHTS[name] - 2 * GRADS[name] for name in WEIGHTS})
    assert (subject.info()["skipped"], subject.info()["step"]) == (3, 1)


def test_a_push_that_is_refused_leaves_what_was_gathered(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, accumulate={"steps": 2})
    assert outcomes(subject.push()) == ["buffered"]
    assert_refused(subject.push(NAN), 422, "nonfinite-gradients", tensors=["bias"])
    assert_refused(subject.push({"weight": GRADS["weight"]}), 422, "tensor-mismatch")
    assert outcomes(subject.push(scaled(GRADS, 3))) == ["applied"]
    assert_equal(subject.pull(), {name: WEIGHTS[name] - 2 * GRADS[name] for name in WEIGHTS})


@pytest.mark.parametrize("nonfinite", ["reject", "skip", "zero"])
def test_finite_gradients_whose_sum_is_not_never_reach_the_weights(http: httpx.Client, nonfinite: str) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, nonfinite=nonfinite, accumulate={"steps": 2, "mean": False})
    huge = scaled(GRADS, 0.8e38)
    assert outcomes(subject.push(huge)) == ["buffered"]
    if nonfinite == "skip":
        assert outcomes(subject.push(huge)) == ["skipped_nonfinite"]
    else:
        assert_refused(subject.push(huge), 422, "nonfinite-gradients", tensors=[])
    assert_equal(subject.pull(), WEIGHTS)
    assert outcomes(subject.push(scaled(GRADS, -1e36))) == ["applied"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in subject.pull().values())


def test_new_weights_leave_what_was_gathered(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, accumulate={"steps": 2, "mean": False})
    subject.push()
    assert http.put(f"{subject.path}/params", json={"params": lists(scaled(WEIGHTS, 2))}).status_code == 200
    assert outcomes(subject.push()) == ["applied"]
    assert_equal(subject.pull(), {name: 2 * WEIGHTS[name] - 2 * GRADS[name] for name in WEIGHTS})


def test_one_push_to_a_step_is_no_accumulation(http: httpx.Client) -> None:
    one, plain = Subject.create(http, accumulate={"steps": 1}), Subject.create(http)
    assert outcomes(one.push(), plain.push()) == ["applied", "applied"]
    assert_equal(one.pull(), plain.pull())
    assert one.info()["bytes"] == plain.info()["bytes"]


def test_what_holds_for_a_step_alone_comes_with_the_push_that_completes_it(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=1.0, accumulate={"steps": 2})
    subject.push(hyperparameters='{"lr": 64.0}')
    assert receipt_of(subject.push(hyperparameters='{"lr": 0.5}'))["lr"] == 0.5
    assert_equal(subject.pull(), {name: WEIGHTS[name] - 0.5 * GRADS[name] for name in WEIGHTS})


@pytest.mark.parametrize("group", ["accumulate", "loss_scale", "averaged", "schedule.0"])
def test_a_group_may_have_the_name_of_anything_that_a_session_remembers(http: httpx.Client, group: str) -> None:
    fields: dict[str, Any] = {
        "accumulate": {"steps": 2},
        "loss_scale": {"init_scale": 1.0},
        "ema": {"decay": 0.5},
        "schedule": {"name": "reduce_on_plateau", "patience": 0},
    }
    named, plain = (
        Subject.create(http, "nadam", groups=[{"name": name, "match": ["bias"]}], **fields) for name in (group, "other")
    )
    for _ in range(6):
        ours, theirs = (receipt_of(subject.push(loss="1.0")) for subject in (named, plain))
        assert ours == {**theirs, "session": ours["session"]}
    for weights in ("current", "ema"):
        assert_equal(named.pull(weights=weights), plain.pull(weights=weights))


WRONG: list[tuple[Any, str]] = [
    (4, "accumulate"),
    ({}, "accumulate.steps"),
    ({"steps": 0}, "accumulate.steps"),
    ({"steps": 2.0}, "accumulate.steps"),
    ({"steps": True}, "accumulate.steps"),
    ({"steps": 2**64}, "accumulate.steps"),
    ({"steps": 2, "mean": 1}, "accumulate.mean"),
    ({"steps": 2, "sum": True}, "accumulate.sum"),
]


@pytest.mark.parametrize(("accumulate", "field"), WRONG, ids=lambda case: str(case)[:50])
def test_an_accumulation_that_is_none_is_refused_by_its_field(http: httpx.Client, accumulate: Any, field: str) -> None:
    sessions = http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "accumulate": accumulate}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions


def test_accumulation_is_fixed_when_a_session_is_created(http: httpx.Client) -> None:
    subject = Subject.create(http, accumulate={"steps": 2})
    for field in ("accumulate", "loss_scale", "ema", "swa", "centralize", "maximize"):
        assert_refused(http.patch(subject.path, json={field: None}), 422, "invalid-field", field=field)


def test_pushes_that_are_together_too_long_for_the_optimizer_are_refused(http: httpx.Client) -> None:
    params = {"w": torch.ones(2, 2)}
    subject = Subject.create(http, "soap", params=params, accumulate={"steps": 2})
    long = {"w": torch.full((2, 2), 0.4e15)}
    assert receipt_of(subject.push(long))["outcome"] == "buffered"
    before = subject.stands()
    assert_refused(subject.push(long), 422, "nonfinite-gradients", tensors=[])
    assert subject.stands() == before
    assert receipt_of(subject.push({"w": torch.zeros(2, 2)}))["outcome"] == "applied"
