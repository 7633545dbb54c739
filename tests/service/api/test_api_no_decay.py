"""Groups: the usual recipe by one word, and descriptions that are given back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_local import assert_close
from api_subject import Subject, assert_equal, assert_refused, lists, receipt_of

from optimd_service.session.description import SessionDescription

MODEL: dict[str, tuple[int, ...]] = {
    "layers.0.attention.weight": (4, 4),
    "layers.0.attention.bias": (4,),
    "layers.0.attention.in_proj_bias": (1, 4),
    "layers.0.LayerNorm.weight": (1, 4),
    "features.bn1.weight": (4, 1),
    "embed.position": (2, 4),
    "embed.token": (5, 4),
    "scale": (),
    "vector": (3,),
    "head.weight": (3, 4),
}
DECAYED = {"layers.0.attention.weight", "embed.token", "head.weight"}


def tensors_of_model(*, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in MODEL.items()}


def test_weight_decay_is_spared_on_biases_normalisation_and_whatever_has_one_dimension(http: httpx.Client) -> None:
    weights = tensors_of_model()
    subject = Subject.create(http, params=weights, groups="no_decay", lr=0.1, weight_decay=0.5)
    info = subject.info()
    assert {tensor["name"] for tensor in info["tensors"] if tensor["group"] == "default"} == DECAYED
    assert {name: hyper["weight_decay"] for name, hyper in info["hyperparameters"].items()} == {
        "no_decay": 0.0,
        "default": 0.5,
    }
    params = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    local = torch.optim.AdamW(
        [{"params": [param], "weight_decay": 0.5 * (name in DECAYED)} for name, param in params.items()], lr=0.1
    )
    for step in range(5):
        grads = tensors_of_model(seed=step + 1)
        subject.push(grads)
        for name, param in params.items():
            param.grad = grads[name]
        local.step()
    assert_close(subject.pull(), {name: param.detach() for name, param in params.items()})


def test_the_recipe_leaves_groups_out_that_would_be_empty(http: httpx.Client) -> None:
    matrices = Subject.create(http, params={"w": torch.ones(2, 2)}, groups="no_decay").info()
    assert (matrices["groups"], list(matrices["hyperparameters"])) == ([], ["default"])
    vectors = Subject.create(http, params={"b": torch.ones(2)}, groups="no_decay").info()
    assert list(vectors["hyperparameters"]) == ["no_decay"]


def test_untrained_tensors_are_in_no_group_of_the_recipe(http: httpx.Client) -> None:
    weights = {"w": torch.ones(2, 2), "bn.running_mean": torch.ones(2)}
    info = Subject.create(http, params=weights, groups="no_decay", buffers=["*running*"]).info()
    assert {tensor["name"]: tensor["group"] for tensor in info["tensors"]} == {"w": "default", "bn.running_mean": None}
    assert info["groups"] == []


def test_the_recipe_is_refused_for_an_optimizer_without_weight_decay(http: httpx.Client) -> None:
    body = {"optimizer": {"name": "rprop"}, "params": lists({"b": torch.ones(2)}), "groups": "no_decay"}
    reply = http.post("/v1/sessions", json=body)
    assert_refused(reply, 422, "invalid-hyperparameter", field="groups.no_decay.weight_decay")
    assert_refused(http.post("/v1/sessions", json={**body, "groups": "no_bias"}), 422, "invalid-field")


@pytest.mark.parametrize(
    "said",
    [
        {"groups": "no_decay"},
        {"groups": [{"name": "b", "match": ["*bias"], "lr": 0.5}], "clip": {"max_norm": 1.0}, "nonfinite": "skip"},
        {"buffers": ["*bn1*"], "frozen": ["scale"], "groups": "no_decay", "maximize": True, "centralize": True},
        {"schedule": {"name": "cosine", "total_steps": 10}, "accumulate": {"steps": 2}, "ema": {}, "swa": {}},
        {"loss_scale": {"init_scale": 4.0}, "state_dtype": "8bit"},
    ],
    ids=["recipe", "groups", "roles", "schedule", "precision"],
)
def test_a_description_that_is_given_back_creates_the_same_session(http: httpx.Client, said: dict[str, Any]) -> None:
    weights = {name: tensor.float() for name, tensor in tensors_of_model().items()}
    subject = Subject.create(http, params=weights, name="first", seed=7, lr=0.1, weight_decay=0.1, **said)
    info = subject.info()
    again = {name: info[name] for name in SessionDescription.model_fields if name in info}
    assert {"tensors", "optimizer", "groups"} <= again.keys()
    reply = http.post("/v1/sessions", json=again)
    assert reply.status_code == 201, reply.text
    own = {"id", "created_at"}
    assert {k: v for k, v in reply.json().items() if k not in own} == {k: v for k, v in info.items() if k not in own}
    twin = Subject(http, reply.headers["Location"])
    assert http.put(f"{twin.path}/params", json={"params": lists(weights)}).status_code == 200
    trained = [tensor["name"] for tensor in info["tensors"] if tensor["role"] == "trained"]
    for step in range(4):
        grads = {name: tensor for name, tensor in tensors_of_model(seed=step + 1).items() if name in trained}
        ours, theirs = receipt_of(subject.push(grads)), receipt_of(twin.push(grads))
        assert theirs == {**ours, "session": theirs["session"]}
    assert_equal(twin.pull(), subject.pull())
    assert not torch.equal(twin.pull()["head.weight"], weights["head.weight"])


def test_groups_may_be_called_like_anything_else_that_a_session_remembers(http: httpx.Client) -> None:
    weights = tensors_of_model()
    names = ["loss_scale", "accumulate", "averaged", "schedule.0"]
    tensors = [{"name": name, "shape": list(shape), "dtype": "F64"} for name, shape in MODEL.items()]
    grouped = [{**tensor, "group": names[i % 4]} for i, tensor in enumerate(tensors)]
    said = {
        "loss_scale": {"init_scale": 1.0},
        "accumulate": {"steps": 2},
        "ema": {},
        "schedule": {"name": "reduce_on_plateau"},
    }
    subject = Subject.create(
        http, "nadam", params=weights, tensors=grouped, groups=[{"name": name} for name in names], **said
    )
    plain = Subject.create(http, "nadam", params=weights, **said)
    for step in range(6):
        grads = tensors_of_model(seed=step + 1)
        outcomes = [receipt_of(each.push(grads, loss="1.0"))["outcome"] for each in (subject, plain)]
        assert outcomes == [["buffered", "applied"][step % 2]] * 2
    assert_close(subject.pull(), plain.pull())
