"""What one gradient would do under several settings: what the step would be, and nothing is done."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, SAFETENSORS, WEIGHTS, Subject, Tensors, assert_refused, lists, receipt_of

from raw_safetensors import tensor_file


def ask(subject: Subject, candidates: Any, grads: Tensors = GRADS) -> httpx.Response:
    content = tensor_file(grads, {"candidates": json.dumps(candidates)})
    return subject.http.post(f"{subject.path}/what-if", content=content, headers=SAFETENSORS)


def asked(subject: Subject, *candidates: dict[str, Any], grads: Tensors = GRADS) -> dict[str, Any]:
    reply = ask(subject, list(candidates), grads)
    assert reply.status_code == 200, reply.text
    report: dict[str, Any] = reply.json()
    return report


SGD = {"optimizer": {"name": "sgd", "lr": 0.5}}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion", "nadam", "schedule_free_adamw"])
def test_the_sessions_own_settings_do_what_the_next_push_does(http: httpx.Client, optimizer: str) -> None:
    subject = Subject.create(
        http,
        optimizer,
        lr=0.1,
        clip={"max_norm": 0.5},
        schedule={"name": "exponential", "gamma": 0.5},
        groups=[{"name": "biases", "match": ["bias"], "lr": 0.3}],
    )
    for _ in range(3):
        receipt_of(subject.push())
    before, said = subject.pull(), asked(subject, SGD)
    own, receipt = said["own"], receipt_of(subject.push())
    update = {name: tensor - before[name] for name, tensor in subject.pull().items()}
    assert {name: own[name] for name in ("lr", "clip_scale", "update_norm")} == {
        name: receipt[name] for name in ("lr", "clip_scale", "update_norm")
    }
    flat = torch.cat([update[name].reshape(-1) for name in WEIGHTS]).double()
    descent = -torch.cat([GRADS[name].reshape(-1) for name in WEIGHTS]).double()
    assert own["update_rms"] == pytest.approx(float(flat.square().mean().sqrt()), rel=1e-4)
    assert own["cosine_to_descent"] == pytest.approx(float(torch.cosine_similarity(flat, descent, dim=0)), abs=1e-4)
    assert own["cosine_to_own"] == pytest.approx(1)
    assert said["grad_norm"] == pytest.approx(float(descent.norm()))
    parts = {part["name"]: part for part in own["tensors"]}
    for name, tensor in update.items():
        norm, weights = float(tensor.norm()), float(before[name].norm())
        assert parts[name]["update_norm"] == pytest.approx(norm, rel=1e-4)
        assert parts[name]["relative_update"] == pytest.approx(norm / weights, rel=1e-4)
    assert own["groups"]["biases"]["update_norm"] == pytest.approx(float(update["bias"].norm()), rel=1e-4)


def test_a_candidate_does_what_a_fork_of_the_same_settings_does(subject: Subject) -> None:
    candidates = [
        {"name": "faster", "optimizer": {"lr": 0.5}},
        {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9, "carry": {"momentum_buffer": "exp_avg"}}},
        {"optimizer": {"name": "adam"}, "clip": {"max_norm": 0.1}, "schedule": {"name": "constant", "factor": 0.5}},
        {"groups": [{"name": "no_decay", "lr": 3.0}], "nonfinite": "zero"},
    ]
    report = asked(subject, *candidates)
    for candidate, tried in zip(candidates, report["candidates"], strict=True):
        wanted = {name: value for name, value in candidate.items() if name != "name"}
        reply = subject.http.post(f"{subject.path}/fork", json=wanted)
        branch = Subject(subject.http, reply.headers["Location"])
        receipt = receipt_of(branch.push())
        assert {name: tried[name] for name in ("lr", "clip_scale", "update_norm", "outcome")} == {
            name: receipt[name] for name in ("lr", "clip_scale", "update_norm", "outcome")
        }
    faster, momentum, adam, _ = report["candidates"]
    assert (faster["name"], momentum["name"]) == ("faster", "sgd")
    assert momentum["carried"] == {"momentum_buffer": "exp_avg"}
    assert sorted(adam["carried"]) == ["exp_avg", "exp_avg_sq"]
    assert asked(subject, SGD | {"optimizer": {"name": "adagrad"}})["candidates"][0]["fresh"] == ["sum"]


def test_directions_are_compared(subject: Subject) -> None:
    plain, upwards = asked(subject, SGD, {"optimizer": {"name": "lion", "lr": 0.1}})["candidates"]
    assert plain["cosine_to_descent"] == pytest.approx(1, abs=1e-6)
    assert 0 < upwards["cosine_to_descent"] < 1
    assert plain["cosine_to_own"] < 1


def test_json_says_the_same(subject: Subject) -> None:
    body = {"grads": lists(GRADS), "candidates": [SGD]}
    assert subject.http.post(f"{subject.path}/what-if", json=body).json() == asked(subject, SGD)


@pytest.mark.parametrize(
    "policy",
    [
        {"accumulate": {"steps": 3}},
        {"loss_scale": {"init_scale": 4.0}},
        {"ema": {"decay": 0.9}, "swa": {"start": 0, "every": 1}},
        {"grad_dtype": "BF16"},
        {"wire": {"difference": True, "params": "BF16"}},
        {"nonfinite": "skip"},
    ],
)
def test_nothing_changes(http: httpx.Client, policy: dict[str, Any]) -> None:
    subject = Subject.create(http, **policy)
    for number in range(4):
        receipt_of(subject.push(key=f"k{number}"))
    before = subject.stands()
    asked(subject, SGD, {"optimizer": {"lr": 0.5}})
    bad = {**GRADS, "bias": torch.tensor([float("nan"), 0.0])}
    ask(subject, [SGD], bad)
    assert subject.stands() == before


def test_a_push_that_would_wait_for_others_is_tried_as_a_whole_step(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=0.5, accumulate={"steps": 3})
    receipt_of(subject.push(key="k"))
    own = asked(subject, SGD)["own"]
    assert (own["outcome"], own["update_norm"]) == ("applied", pytest.approx(0.5 * asked(subject, SGD)["grad_norm"]))


def test_gradients_that_would_be_skipped_are_said_to_be(http: httpx.Client) -> None:
    subject = Subject.create(http, nonfinite="skip")
    bad = {**GRADS, "bias": torch.tensor([float("inf"), 0.0])}
    own = asked(subject, SGD, grads=bad)["own"]
    assert (own["outcome"], own["update_norm"], own["cosine_to_descent"]) == ("skipped_nonfinite", 0.0, None)


@pytest.mark.parametrize(
    ("candidates", "status", "slug"),
    [
        ([], 422, "invalid-field"),
        ([{}] * 33, 422, "invalid-field"),
        ({}, 422, "invalid-field"),
        ([{"optimizer": {"lr": -1.0}}], 422, "invalid-hyperparameter"),
        ([{}, {"optimizer": {"name": "none"}}], 404, "optimizer-not-found"),
        ([{"optimizer": {"name": "sgd", "carry": {"a": "b"}}}], 422, "invalid-field"),
        ([{"durability": "memory"}], 422, "invalid-field"),
        ([{"groups": [{"name": "none", "lr": 1.0}]}], 422, "invalid-field"),
    ],
)
def test_candidates_that_are_none_are_refused(
    subject: Subject, unchanged: None, candidates: Any, status: int, slug: str
) -> None:
    reply = ask(subject, candidates)
    if status == 404:
        assert reply.status_code in {404, 422}
        return
    assert_refused(reply, status, slug)


def test_gradients_that_are_none_are_refused(subject: Subject, unchanged: None) -> None:
    assert_refused(ask(subject, [SGD], {"weight": GRADS["weight"]}), 422, "tensor-mismatch")
    assert_refused(
        ask(subject, [SGD], {**GRADS, "bias": torch.tensor([float("nan"), 0.0])}), 422, "nonfinite-gradients"
    )
    content = tensor_file(GRADS)
    reply = subject.http.post(f"{subject.path}/what-if", content=content, headers=SAFETENSORS)
    assert_refused(reply, 422, "invalid-field", field="candidates")
    body = {"grads": {"weight": {"rows": [0], "values": [[1, 2, 3]]}, "bias": [1, 2]}, "candidates": [SGD]}
    assert subject.http.post(f"{subject.path}/what-if", json=body).status_code == 422
    body = {"grads": lists(GRADS), "candidates": [SGD], "loss": 1}
    assert_refused(subject.http.post(f"{subject.path}/what-if", json=body), 422, "invalid-field", field="loss")
