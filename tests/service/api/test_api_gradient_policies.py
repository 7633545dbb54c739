"""What else is done to gradients between a push and its step: turned round, centralised."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients
from api_subject import WEIGHTS, Subject, Tensors, assert_refused, lists, receipt_of


def centred(grads: Tensors) -> dict[str, torch.Tensor]:
    """Yong et al. 2020, equation 1: of each row of a matrix its mean, and nothing of a vector."""
    return {name: grad - grad.mean(dim=1, keepdim=True) if grad.dim() > 1 else grad for name, grad in grads.items()}


def norm(grads: Tensors) -> float:
    return float(torch.cat([grad.flatten() for grad in grads.values()]).norm())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_maximize_is_torchs_own(http: httpx.Client, optimizer: str) -> None:
    hyper = {"lr": 0.1, "weight_decay": 0.1}
    subject = Subject.create(http, optimizer.lower(), params=PRECISE, maximize=True, **hyper)
    local = Local(lambda groups: getattr(torch.optim, optimizer)(groups, maximize=True, **hyper))
    for grads in gradients(10):
        assert receipt_of(subject.push(grads))["grad_norm"] == pytest.approx(norm(grads))
        local.step(grads)
    assert_close(subject.pull(), local.weights)
    assert subject.info()["maximize"] is True


def test_centralize_takes_the_mean_of_each_row(http: httpx.Client) -> None:
    subject = Subject.create(http, "adam", params=PRECISE, centralize=True, lr=0.1)
    local = Local(lambda groups: torch.optim.Adam(groups, lr=0.1))
    for grads in gradients(10):
        receipt = receipt_of(subject.push(grads))
        local.step(centred(grads))
        assert receipt["grad_norm"] == pytest.approx(norm(centred(grads)), rel=1e-12)
    assert_close(subject.pull(), local.weights)
    assert subject.info()["centralize"] is True


def test_gradients_are_centralised_before_they_are_clipped_and_turned_round_last(http: httpx.Client) -> None:
    subject = Subject.create(
        http, "sgd", params=PRECISE, centralize=True, clip={"max_norm": 1.0}, maximize=True, lr=0.5
    )
    local = Local(lambda groups: torch.optim.SGD(groups, lr=0.5, maximize=True))
    for grads in gradients(5):
        receipt = receipt_of(subject.push(grads))
        local.hand(centred(grads))
        before = float(torch.nn.utils.clip_grad_norm_(local.params.values(), 1.0))
        local.optimizer.step()
        assert receipt["grad_norm"] == pytest.approx(before, rel=1e-9)
        assert receipt["clip_scale"] == pytest.approx(min(1.0, 1 / before), rel=1e-5)
    assert_close(subject.pull(), local.weights)


def test_gathered_gradients_are_centralised_and_clipped_as_the_one_they_make(http: httpx.Client) -> None:
    subject = Subject.create(
        http, "sgd", params=PRECISE, accumulate={"steps": 3}, centralize=True, clip={"max_norm": 0.5}, lr=0.5
    )
    local = Local(lambda groups: torch.optim.SGD(groups, lr=0.5))
    pushed = list(gradients(6))
    for at in (0, 3):
        three = pushed[at : at + 3]
        local.hand(centred({name: torch.stack([g[name] for g in three]).mean(0) for name in PRECISE}))
        before = float(torch.nn.utils.clip_grad_norm_(local.params.values(), 0.5))
        local.optimizer.step()
        receipts = [receipt_of(subject.push(grads)) for grads in three]
        assert receipts[-1]["grad_norm"] == pytest.approx(before, rel=1e-9)
    assert_close(subject.pull(), local.weights)


def test_without_them_gradients_are_stepped_with_as_they_are(http: httpx.Client) -> None:
    said = Subject.create(http, "sgd").info()
    assert (said["centralize"], said["maximize"], said["clip"], said["accumulate"]) == (False, False, None, None)


@pytest.mark.parametrize("field", ["centralize", "maximize"])
@pytest.mark.parametrize("value", [1, "true", None, {}], ids=str)
def test_a_policy_that_is_neither_true_nor_false_is_refused(http: httpx.Client, field: str, value: Any) -> None:
    sessions = http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), field: value}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions
