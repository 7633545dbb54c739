"""Gradients of a scaled loss, and the scale that follows them, against torch's GradScaler."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
import torch
from api_local import PRECISE, assert_close, gradients, scaled
from api_subject import GRADS, WEIGHTS, Subject, assert_equal, assert_refused, lists, receipt_of

INF = {**GRADS, "bias": torch.tensor([math.inf, 1.0])}
LOSS_SCALE = {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}


def torchs_scales(found: str, **spec: Any) -> list[float]:
    """The scales of torch's GradScaler after steps that were finite (.) or not (x)."""
    scaler = torch.amp.GradScaler("cpu", **spec)
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.0)
    scales = []
    for kind in found:
        scaler.scale(param.sum())  # makes its tensors
        param.grad = torch.tensor([math.inf if kind == "x" else 1.0])
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def test_gradients_of_a_scaled_loss_step_as_those_of_the_loss_itself(http: httpx.Client) -> None:
    scaling, plain = (Subject.create(http, "adamw", loss_scale=spec) for spec in (LOSS_SCALE, None))
    scale = 1024.0
    for grads in gradients(8, dtype=torch.float32):
        ours, theirs = receipt_of(scaling.push(scaled(grads, scale))), receipt_of(plain.push(grads))
        assert ours == {**theirs, "session": ours["session"], "loss_scale": ours["loss_scale"]}
        scale = ours["loss_scale"]
    # Powers of two: not a bit is lost.
    assert_equal(scaling.pull(), plain.pull())
    assert scale == 16 * 1024


def test_a_scale_that_is_no_power_of_two_costs_a_rounding(http: httpx.Client) -> None:
    spec = {"init_scale": 1000.0}
    scaling, plain = (Subject.create(http, "sgd", params=PRECISE, lr=0.1, loss_scale=s) for s in (spec, None))
    for grads in gradients(3):
        receipts = receipt_of(scaling.push(scaled(grads, 1000.0))), receipt_of(plain.push(grads))
        assert receipts[0]["grad_norm"] == pytest.approx(receipts[1]["grad_norm"], rel=1e-12)
    assert_close(scaling.pull(), plain.pull())


@pytest.mark.parametrize("found", ["...x", "..x..x...", "xxxx.....", ".........x.."])
def test_the_scale_grows_and_backs_off_as_torchs(http: httpx.Client, found: str) -> None:
    subject = Subject.create(http, "sgd", loss_scale=LOSS_SCALE)
    receipts = [receipt_of(subject.push(INF if kind == "x" else GRADS)) for kind in found]
    assert [receipt["loss_scale"] for receipt in receipts] == torchs_scales(found, **LOSS_SCALE)
    assert [receipt["outcome"] for receipt in receipts] == [
        "skipped_nonfinite" if kind == "x" else "applied" for kind in found
    ]
    rows = [receipt["loss_scale"] for receipt in receipts if receipt["outcome"] == "applied"]
    assert [row["loss_scale"] for row in subject.steps()] == rows


@pytest.mark.parametrize("nonfinite", ["reject", "skip", "zero"])
def test_infinity_skips_the_step_and_lowers_the_scale_whatever_the_policy(http: httpx.Client, nonfinite: str) -> None:
    subject = Subject.create(http, "adamw", nonfinite=nonfinite, loss_scale=LOSS_SCALE)
    subject.push(scaled(GRADS, 1024))
    before = subject.stands()
    receipt = receipt_of(subject.push(INF, key="k"))
    told = {"outcome": "skipped_nonfinite", "step": 1, "base_step": 1, "loss_scale": 256.0, "update_norm": 0.0}
    assert {name: receipt[name] for name in told} == told
    after = subject.stands()
    assert {name: after[name] for name in ("params", "state", "steps")} == {
        name: before[name] for name in ("params", "state", "steps")
    }
    assert after["session"] == {**before["session"], "skipped": 1, "loss_scale_now": 256.0}
    # Its retry backs off no further.
    assert receipt_of(subject.push(INF, key="k")) == {**receipt, "duplicate": True}
    assert receipt_of(subject.push(scaled(GRADS, 256)))["loss_scale"] == 256.0


def test_gradients_that_cannot_be_unscaled_never_reach_the_weights(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", loss_scale={"init_scale": 1e-37, "growth_interval": 1000})
    assert receipt_of(subject.push(scaled(GRADS, 1e3)))["outcome"] == "skipped_nonfinite"
    assert_equal(subject.pull(), WEIGHTS)


def test_clipping_and_norms_are_of_the_unscaled_gradients(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"clip": {"max_norm": 0.5}}
    scaling = Subject.create(http, "sgd", loss_scale={"init_scale": 4096.0}, **fields)
    plain = Subject.create(http, "sgd", **fields)
    ours, theirs = receipt_of(scaling.push(scaled(GRADS, 4096.0))), receipt_of(plain.push())
    assert ours == {**theirs, "session": ours["session"], "loss_scale": 4096.0}
    assert_equal(scaling.pull(), plain.pull())


def test_with_accumulation_every_push_is_unscaled_by_the_scale_it_was_made_with(http: httpx.Client) -> None:
    accumulate = {"steps": 2, "mean": False}
    subject = Subject.create(
        http, "sgd", lr=1.0, accumulate=accumulate, loss_scale={**LOSS_SCALE, "growth_interval": 1}
    )
    receipts = [
        receipt_of(subject.push(grads))
        for grads in (scaled(GRADS, 1024), INF, scaled(GRADS, 256), scaled(GRADS, 1024), scaled(GRADS, 2 * 1024))
    ]
    assert [receipt["outcome"] for receipt in receipts] == [
        "buffered", "skipped_nonfinite", "applied", "buffered", "applied"
    ]  # fmt: skip
    # A scale grows with steps, not with the pushes that make them.
    assert [receipt["loss_scale"] for receipt in receipts] == [1024.0, 256.0, 1024.0, 1024.0, 4096.0]
    assert_equal(subject.pull(), {name: WEIGHTS[name] - 5 * GRADS[name] for name in WEIGHTS})


def test_without_loss_scaling_a_receipt_has_no_scale(http: httpx.Client) -> None:
    subject = Subject.create(http)
    assert receipt_of(subject.push())["loss_scale"] is None
    assert subject.steps()[0]["loss_scale"] is None
    assert subject.info()["loss_scale"] is None


def test_the_defaults_are_torchs(http: httpx.Client) -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert Subject.create(http, loss_scale={}).info()["loss_scale"] == {
        "init_scale": scaler.get_scale(),
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
    }


WRONG: list[tuple[Any, str]] = [
    (1024.0, "loss_scale"),
    (True, "loss_scale"),
    ({"init_scale": 0}, "loss_scale.init_scale"),
    ({"init_scale": 1e30}, "loss_scale.init_scale"),
    ({"init_scale": "1"}, "loss_scale.init_scale"),
    ({"growth_factor": 1.0}, "loss_scale.growth_factor"),
    ({"backoff_factor": 1.0}, "loss_scale.backoff_factor"),
    ({"backoff_factor": 0}, "loss_scale.backoff_factor"),
    ({"growth_interval": 0}, "loss_scale.growth_interval"),
    ({"growth_interval": 1.5}, "loss_scale.growth_interval"),
    ({"enabled": True}, "loss_scale.enabled"),
]


@pytest.mark.parametrize(("loss_scale", "field"), WRONG, ids=lambda case: str(case)[:50])
def test_a_loss_scale_that_is_none_is_refused_by_its_field(http: httpx.Client, loss_scale: Any, field: str) -> None:
    sessions = http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "loss_scale": loss_scale}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions


def test_a_push_without_a_key_is_refused_where_its_retry_could_count_twice(http: httpx.Client) -> None:
    for policy in ({"loss_scale": LOSS_SCALE}, {"accumulate": {"steps": 2}}):
        subject = Subject.create(http, "sgd", **policy)
        assert_refused(subject.push(if_match='"0"'), 428, "precondition-required", step=0, etag="0.0")
        assert subject.push(key="k", if_match='"0"').status_code == 200
