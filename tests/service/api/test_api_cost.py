"""What a session costs, asked before there is one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from api_subject import Subject, assert_refused

F32 = 4
TENSORS = [{"name": "weight", "shape": [12, 40]}, {"name": "bias", "shape": [12]}, {"name": "mean", "shape": [12]}]
MATRICES = TENSORS[:1]
EVERYTHING_BESIDE = {
    "accumulate": {"steps": 4},
    "ema": {},
    "swa": {},
    "loss_scale": {},
    "schedule": {"name": "cosine", "total_steps": 9},
    "clip": {"max_norm": 1.0},
}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": {"name": "adamw"}, "tensors": TENSORS},
    "adamw in doubles": {
        "optimizer": {"name": "adamw"},
        "tensors": [{**tensor, "dtype": "F64"} for tensor in TENSORS],
    },
    "no state": {"optimizer": {"name": "sgd"}, "tensors": TENSORS},
    "momentum": {"optimizer": {"name": "sgd", "momentum": 0.9}, "tensors": TENSORS},
    "one group needs more": {
        "optimizer": {"name": "adamw"},
        "tensors": TENSORS,
        "groups": [{"match": ["bias"], "amsgrad": True}],
    },
    "buffers": {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "buffers": ["mean"]},
    "frozen": {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "buffers": ["mean"], "frozen": ["weight"]},
    "rows and columns": {"optimizer": {"name": "adafactor"}, "tensors": TENSORS},
    "square matrices": {"optimizer": {"name": "soap"}, "tensors": TENSORS},
    "matrices alone": {"optimizer": {"name": "muon"}, "tensors": MATRICES},
    "beside the optimizer": {"optimizer": {"name": "lion"}, "tensors": TENSORS, **EVERYTHING_BESIDE},
    "accumulation of one push": {"optimizer": {"name": "sgd"}, "tensors": TENSORS, "accumulate": {"steps": 1}},
    "gradients in two bytes": {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "grad_dtype": "BF16"},
    "state in two bytes": {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "state_dtype": "bf16"},
    "state in one byte": {"optimizer": {"name": "adamw"}, "tensors": TENSORS, "state_dtype": "8bit"},
    "what the client holds": {
        "optimizer": {"name": "adamw"},
        "tensors": TENSORS,
        "buffers": ["mean"],
        "wire": {"params": "BF16", "difference": True},
    },
    "weights inline": {"optimizer": {"name": "adam"}, "params": {"w": [[1.0, 2.0], [3.0, 4.0]]}},
}


@pytest.mark.parametrize("body", DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_the_cost_is_what_the_session_then_takes(http: httpx.Client, body: dict[str, Any]) -> None:
    before = http.get("/readyz").json()["sessions"]
    asked = http.post("/v1/cost", json=body)
    assert asked.status_code == 200, asked.text
    cost = asked.json()
    assert http.get("/readyz").json()["sessions"] == before
    created = http.post("/v1/sessions", json=body)
    info = created.json()
    assert cost["bytes"] == info["bytes"]
    assert cost["parameters"] == info["parameters"]
    assert cost["optimizer"] == info["optimizer"]["name"]
    assert cost["bytes"] == cost["weights_bytes"] + cost["grads_bytes"] + cost["state_bytes"]
    assert cost["state_bytes"] == sum(cost["state"].values())
    subject = Subject(http, created.headers["Location"])
    grads = {
        name: tensor
        for name, tensor in subject.pull().items()
        if next(t["role"] for t in info["tensors"] if t["name"] == name) == "trained"
    }
    for _ in range(2):
        assert subject.push(grads).status_code == 200
    assert subject.info()["bytes"] == cost["bytes"]


def test_the_cost_says_what_the_bytes_are_for(http: httpx.Client) -> None:
    cost = http.post("/v1/cost", json=DESCRIPTIONS["buffers"]).json()
    trained = 12 * 40 + 12
    assert cost == {
        "optimizer": "adamw",
        "parameters": trained + 12,
        "trained_parameters": trained,
        "weights_bytes": (trained + 12) * F32,
        "grads_bytes": (trained + 12) * F32,
        "state_bytes": 2 * trained * F32,
        "state": {"exp_avg": trained * F32, "exp_avg_sq": trained * F32},
        "bytes": 2 * (trained + 12) * F32 + 2 * trained * F32,
        "state_bytes_per_parameter": 2 * F32,
    }


def test_a_session_far_beyond_this_machine_has_a_cost_too(http: httpx.Client) -> None:
    body = {"optimizer": {"name": "adamw"}, "tensors": [{"name": "w", "shape": [2**25, 2**20]}]}
    assert http.post("/v1/cost", json=body).json()["bytes"] == 4 * F32 * 2**45
    assert_refused(http.post("/v1/sessions", json=body), 507, "insufficient-memory")


@pytest.mark.parametrize(
    ("wrong", "slug", "field"),
    [
        ({"optimizer": {"name": "adamz"}}, "invalid-field", "optimizer.name"),
        ({"optimizer": {"name": "adamw", "lr": -1}}, "invalid-hyperparameter", "optimizer.lr"),
        ({"optimizer": {"name": "muon"}}, "invalid-field", "tensors"),
        ({"tensors": []}, "invalid-field", "tensors"),
        ({"colour": "red"}, "invalid-field", "colour"),
    ],
)
def test_what_could_not_be_created_has_no_cost(
    http: httpx.Client, wrong: dict[str, Any], slug: str, field: str
) -> None:
    body = {**DESCRIPTIONS["adamw"], **wrong}
    for path in ("/v1/cost", "/v1/sessions"):
        assert_refused(http.post(path, json=body), 422, slug, field=field)
