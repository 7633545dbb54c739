"""Tensors that are not trained: buffers, which travel with a push, and frozen ones, which only a put changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from api_local import Local, assert_close
from api_subject import SAFETENSORS, Subject, Tensors, assert_equal, assert_refused, lists, receipt_of
from safetensors.torch import load

from raw_safetensors import tensor_file

# Roles take turns, so that a tensor that lay where its name stands in this list would be found out.
WEIGHTS = {
    "embed": torch.arange(6.0).view(3, 2),
    "weight": torch.arange(6.0).view(2, 3) - 2,
    "mean": torch.tensor([1.0, 2.0]),
    "bias": torch.tensor([0.5, -0.5]),
    "var": torch.tensor([3.0, 4.0]),
}
GRADS = {"weight": torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.25, -3.0]]), "bias": torch.tensor([1.0, -0.125])}
STATISTICS = {"mean": torch.tensor([-1.0, 0.25]), "var": torch.tensor([0.125, 7.0])}
TRAINED, NUMEL = 8, 18
F32 = 4


def cut(tensors: Tensors, *names: str) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in names}


@pytest.fixture
def subject(http: httpx.Client) -> Iterator[Subject]:
    subject = Subject.create(http, params=WEIGHTS, buffers=["mean", "var"], frozen=["emb*"], lr=0.1)
    yield subject
    http.delete(subject.path)


def push(
    subject: Subject, kind: str, grads: Tensors = GRADS, buffers: Tensors | None = None, **headers: str
) -> httpx.Response:
    """A push of either kind; it builds on what the session stands at."""
    if kind == "safetensors":
        content = tensor_file({**grads, **(buffers or {})})
        headers |= SAFETENSORS
    else:
        body = {"grads": lists(grads)} | ({} if buffers is None else {"buffers": lists(buffers)})
        content = json.dumps(body).encode()
        headers |= {"Content-Type": "application/json"}
    headers = {"If-Match": subject.etag(), **headers}
    return subject.http.post(f"{subject.path}/steps", content=content, headers=headers)


both_kinds = pytest.mark.parametrize("kind", ["safetensors", "json"])


def test_a_tensor_has_the_role_it_says_else_the_first_that_matches_else_it_is_trained(http: httpx.Client) -> None:
    names = ["a.running_mean", "b.running_mean", "c.running_mean", "head", "a.num_batches", "tail"]
    tensors: list[dict[str, Any]] = [{"name": name, "shape": [1]} for name in names]
    tensors[1]["role"] = "frozen"
    tensors[2]["role"] = "trained"
    subject = Subject.create(
        http, params=None, tensors=tensors, buffers=["*.running_*", "*.num_*"], frozen=["head", "*.num_*"]
    )
    shown = {tensor["name"]: (tensor["role"], tensor["group"]) for tensor in subject.info()["tensors"]}
    assert shown == {
        "a.running_mean": ("buffer", None),
        "b.running_mean": ("frozen", None),
        "c.running_mean": ("trained", "default"),
        "head": ("frozen", None),
        "a.num_batches": ("buffer", None),
        "tail": ("trained", "default"),
    }


@both_kinds
def test_buffers_travel_with_a_push(subject: Subject, kind: str) -> None:
    local = Local(lambda groups: torch.optim.AdamW(groups, lr=0.1), cut(WEIGHTS, *GRADS))
    for step in range(3):
        statistics = {name: tensor + step for name, tensor in STATISTICS.items()}
        reply = push(subject, kind, buffers=statistics)
        assert receipt_of(reply)["outcome"] == "applied"
        local.step(GRADS)
        pulled = subject.pull()
        assert_equal(cut(pulled, "mean", "var"), statistics)
        assert_equal(cut(pulled, "embed"), cut(WEIGHTS, "embed"))
        assert_close(cut(pulled, *GRADS), local.weights, rtol=1e-5, atol=1e-6)


@both_kinds
@pytest.mark.parametrize("names", [["weight", "bias"], ["bias", "weight"]], ids=["as they lie", "turned round"])
def test_buffers_may_be_left_out_and_stay_what_they_were(subject: Subject, kind: str, names: list[str]) -> None:
    receipt_of(push(subject, kind, buffers=STATISTICS))
    receipt = receipt_of(push(subject, kind, cut(GRADS, *names)))
    assert (receipt["outcome"], receipt["step"]) == ("applied", 2)
    assert_equal(cut(subject.pull(), "mean", "var"), STATISTICS)
    local = Local(lambda groups: torch.optim.AdamW(groups, lr=0.1), cut(WEIGHTS, *GRADS))
    local.step(GRADS)
    local.step(GRADS)
    assert_close(cut(subject.pull(), *GRADS), local.weights, rtol=1e-5, atol=1e-6)


def test_no_buffers_in_json_may_also_be_null(subject: Subject) -> None:
    body = {"grads": lists(GRADS), "buffers": None}
    reply = subject.http.post(f"{subject.path}/steps", json=body, headers={"If-Match": '"0"'})
    assert receipt_of(reply)["outcome"] == "applied"
    assert_equal(cut(subject.pull(), "mean", "var"), cut(WEIGHTS, "mean", "var"))


@both_kinds
def test_buffers_come_all_or_none(subject: Subject, kind: str) -> None:
    before = subject.stands()
    reply = push(subject, kind, buffers=cut(STATISTICS, "mean"))
    assert_refused(reply, 422, "tensor-mismatch", missing=["var"], unknown=[])
    assert subject.stands() == before


def test_in_json_a_tensor_stands_where_its_role_says(subject: Subject) -> None:
    before = subject.stands()
    for body, wrong in (
        ({"grads": lists(GRADS | STATISTICS)}, ["mean", "var"]),
        ({"grads": lists(GRADS), "buffers": lists(GRADS | STATISTICS)}, ["weight", "bias"]),
    ):
        reply = subject.http.post(f"{subject.path}/steps", json=body, headers={"If-Match": '"0"'})
        assert_refused(reply, 422, "tensor-mismatch", missing=[], unknown=wrong)
    swapped = {"grads": lists(cut(GRADS, "weight")), "buffers": lists({**STATISTICS, "bias": GRADS["bias"]})}
    reply = subject.http.post(f"{subject.path}/steps", json=swapped, headers={"If-Match": '"0"'})
    assert_refused(reply, 422, "tensor-mismatch", missing=["bias"])
    assert subject.stands() == before


@pytest.mark.parametrize(
    ("kind", "value"), [("safetensors", float("nan")), ("safetensors", -float("inf")), ("json", 1e39)]
)
@pytest.mark.parametrize("policy", ["reject", "skip", "zero"])
def test_buffers_that_are_not_finite_are_refused_by_name(
    http: httpx.Client, kind: str, value: float, policy: str
) -> None:
    subject = Subject.create(http, params=WEIGHTS, buffers=["mean", "var"], frozen=["embed"], nonfinite=policy)
    before = subject.stands()
    reply = push(subject, kind, buffers={**STATISTICS, "var": torch.tensor([value, 1.0], dtype=torch.float64)})
    assert_refused(reply, 422, "nonfinite-params", tensors=["var"])
    assert subject.stands() == before


def test_a_push_that_is_skipped_leaves_buffers_as_they_were(http: httpx.Client) -> None:
    subject = Subject.create(http, params=WEIGHTS, buffers=["mean", "var"], frozen=["embed"], nonfinite="skip")
    grads = {**GRADS, "bias": torch.tensor([float("nan"), 0.0])}
    assert receipt_of(push(subject, "safetensors", grads, STATISTICS))["outcome"] == "skipped_nonfinite"
    assert_equal(subject.pull(), cut(WEIGHTS, *subject.pull()))


@both_kinds
def test_frozen_tensors_are_refused_in_a_push_by_name(subject: Subject, kind: str) -> None:
    before = subject.stands()
    for buffers in (None, STATISTICS):
        reply = push(subject, kind, {**GRADS, "embed": torch.ones(3, 2)}, buffers)
        assert_refused(reply, 422, "tensor-mismatch", unknown=["embed"])
    assert subject.stands() == before


@both_kinds
def test_a_put_of_weights_sets_tensors_of_every_role_and_no_fewer(subject: Subject, kind: str) -> None:
    receipt_of(push(subject, "safetensors", buffers=STATISTICS))
    state = load(subject.http.get(f"{subject.path}/state").content)
    new = {name: -tensor - 1 for name, tensor in WEIGHTS.items()}

    def put(tensors: Tensors) -> httpx.Response:
        if kind == "json":
            return subject.http.put(f"{subject.path}/params", json={"params": lists(tensors)})
        return subject.http.put(f"{subject.path}/params", content=tensor_file(tensors), headers=SAFETENSORS)

    assert_refused(put(cut(new, *GRADS)), 422, "tensor-mismatch", missing=["mean", "var", "embed"])
    assert put(new).status_code == 200
    assert_equal(subject.pull(), cut(new, *subject.pull()))
    assert_equal(load(subject.http.get(f"{subject.path}/state").content), state)


@pytest.mark.usefixtures("on_host")
def test_only_trained_elements_are_counted_in_state_gradients_and_norms(subject: Subject) -> None:
    receipt = receipt_of(push(subject, "safetensors", buffers=STATISTICS))
    pulled = subject.pull()
    norm = torch.cat([pulled[name].flatten().double() for name in GRADS]).norm().item()
    assert receipt["param_norm"] == pytest.approx(norm, rel=1e-6)
    state = load(subject.http.get(f"{subject.path}/state").content)
    assert state.keys() == {f"{name}.{buffer}" for name in GRADS for buffer in ("exp_avg", "exp_avg_sq")}
    info = subject.info()
    assert info["parameters"] == NUMEL
    # Weights, gradients beside buffers in one landing place, and Adam's two moments.
    assert info["bytes"] == F32 * (NUMEL + (NUMEL - 6) + 2 * TRAINED)


def test_a_group_is_for_trained_tensors(http: httpx.Client) -> None:
    tensors = [{"name": "w", "shape": [1]}, {"name": "mean", "shape": [1], "role": "buffer", "group": "own"}]
    body = {"optimizer": {"name": "sgd"}, "tensors": tensors, "groups": [{"name": "own", "match": ["*"]}]}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field="tensors.group")
    tensors[1].pop("group")
    info = http.post("/v1/sessions", json=body).json()
    assert {tensor["name"]: tensor["group"] for tensor in info["tensors"]} == {"w": "own", "mean": None}


def test_a_group_that_holds_untrained_tensors_alone_is_empty(http: httpx.Client) -> None:
    tensors = [{"name": "w", "shape": [1]}, {"name": "mean", "shape": [1], "role": "frozen"}]
    body = {"optimizer": {"name": "sgd"}, "tensors": tensors, "groups": [{"name": "own", "match": ["mean"]}]}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field="groups")


def test_a_retry_with_buffers_is_the_first_push_and_one_with_others_is_refused(subject: Subject) -> None:
    key = {"Idempotency-Key": "k"}
    receipt = receipt_of(push(subject, "safetensors", buffers=STATISTICS, **key))
    receipt_of(push(subject, "safetensors", buffers=cut(WEIGHTS, "mean", "var")))
    again = receipt_of(push(subject, "safetensors", buffers=STATISTICS, **key))
    assert again == {**receipt, "duplicate": True}
    assert_equal(cut(subject.pull(), "mean", "var"), cut(WEIGHTS, "mean", "var"))
    others = push(subject, "safetensors", buffers=cut(WEIGHTS, "mean", "var"), **key)
    assert_refused(others, 422, "key-reused")


@pytest.mark.usefixtures("on_host")
def test_gradients_may_be_kept_in_bfloat16_beside_frozen_tensors_and_not_beside_buffers(http: httpx.Client) -> None:
    weights = {name: WEIGHTS[name] for name in ("embed", "weight", "bias")}
    subject = Subject.create(http, "sgd", params=weights, frozen=["embed"], grad_dtype="BF16", lr=1.0)
    assert subject.info()["bytes"] == F32 * (6 + TRAINED) + 2 * TRAINED
    receipt_of(subject.push(GRADS))
    expected = {name: weights[name] - GRADS[name] for name in GRADS}  # these are bfloat16 numbers
    assert_equal(subject.pull(), {**expected, "embed": weights["embed"]})
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "buffers": ["mean", "var"], "grad_dtype": "BF16"}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field="grad_dtype")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_gradients_kept_in_bfloat16_come_in_any_dtype(http: httpx.Client, dtype: torch.dtype) -> None:
    weights = cut(WEIGHTS, *GRADS)
    subject = Subject.create(http, "sgd", params=weights, grad_dtype="BF16", lr=1.0)
    receipt_of(subject.push({name: grad.to(dtype) for name, grad in GRADS.items()}))
    assert_equal(subject.pull(), {name: weights[name] - GRADS[name] for name in GRADS})


def test_a_session_without_trained_tensors_takes_buffers_alone(http: httpx.Client) -> None:
    subject = Subject.create(http, params=cut(WEIGHTS, "mean", "var"), buffers=["*"])
    assert receipt_of(push(subject, "safetensors", {}, STATISTICS))["step"] == 1
    assert_equal(subject.pull(), STATISTICS)
    assert receipt_of(push(subject, "safetensors", {}))["step"] == 2
    assert_equal(subject.pull(), STATISTICS)
