"""POST /v1/advice: a task in, choices out that the create call takes as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_subject import JSON, assert_refused
from openapi_contract import Contract

PAGE = (Path(__file__).parents[3] / "docs" / "advice.md").read_text()
MLP: dict[str, Any] = {"model": "mlp", "parameters": 10_000}
TENSORS = [{"name": "fc.weight", "shape": [10, 64]}, {"name": "fc.bias", "shape": [10]}]


def ask(http: httpx.Client, **task: Any) -> dict[str, Any]:
    reply = http.post("/v1/advice", json=task)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_a_task_is_answered_with_choices_and_their_reasons(http: httpx.Client) -> None:
    answer = ask(http, model="resnet", parameters=25_600_000, batch_size=256, steps=100_000)
    first, *others = answer["recommendations"]
    assert first["optimizer"] == "sgd"
    assert first["hyperparameters"]["lr"] == 0.1
    assert first["memory"] == {"bytes_per_parameter": 4.0, "state_bytes": 102_400_000, "total_bytes": 307_200_000}
    assert all(reason["text"] and reason["source"] for reason in first["reasons"])
    assert [other["score"] <= first["score"] for other in others] == [True] * len(others)
    assert answer["needed_bytes"] is None


@pytest.mark.parametrize("room", [8, 5, 3], ids="{} bytes".format)
@pytest.mark.parametrize("model", ["mlp", "linear", "resnet", "language_model", "gan", "recommender", "rnn"])
def test_every_choice_is_a_session_that_can_be_created(http: httpx.Client, model: str, room: int) -> None:
    for found in ask(http, model=model, parameters=650, steps=1000, memory_bytes=650 * room)["recommendations"]:
        body = {
            "optimizer": {"name": found["optimizer"], **found["hyperparameters"]},
            "tensors": TENSORS[:1] if found["optimizer"] == "muon" else TENSORS,
            "groups": found["groups"],
            "schedule": found["schedule"],
            "state_dtype": found["state_dtype"],
            **({"clip": found["clip"]} if found["clip"] else {}),
        }
        reply = http.post("/v1/sessions", json=body)
        assert reply.status_code == 201, reply.text
        assert http.delete(reply.headers["Location"]).status_code == 204


def test_a_budget_that_nothing_fits_is_answered_with_one_that_does(http: httpx.Client) -> None:
    answer = ask(http, model="gan", parameters=1000, memory_bytes=0)
    assert answer["recommendations"] == []
    assert ask(http, model="gan", parameters=1000, memory_bytes=answer["needed_bytes"])["recommendations"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": "perceptron"}, "model"),
        ({"parameters": 0}, "parameters"),
        ({"parameters": "10"}, "parameters"),
        ({"parameters": True}, "parameters"),
        ({"parameters": 1.5}, "parameters"),
        ({"parameters": 10**400}, "parameters"),
        ({"batch_size": -1}, "batch_size"),
        ({"steps": 0}, "steps"),
        ({"epochs": 2**63}, "epochs"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"fine_tuning": 1}, "fine_tuning"),
        ({"precision": "fp8"}, "precision"),
        ({"symptoms": "diverges"}, "symptoms"),
        ({"symptoms": ["tired"]}, "symptoms.0"),
        ({"symptoms": ["plateau"] * 11}, "symptoms"),
        ({"data": []}, "data"),
        ({"data": {"examples": 0}}, "data.examples"),
        ({"data": {"rows": 1}}, "data.rows"),
        ({"optimizer": "sgd"}, "optimizer"),
    ],
)
def test_a_wrong_field_is_refused_by_name(http: httpx.Client, change: dict[str, Any], field: str) -> None:
    body = {name: value for name, value in (MLP | change).items() if value is not None}
    reply = http.post("/v1/advice", content=json.dumps(body), headers=JSON)
    assert_refused(reply, 422, "invalid-field", field=field)


@pytest.mark.parametrize(
    ("body", "reason"), [(b"[]", "not-an-object"), (b'{"parameters": NaN}', "NaN"), (b"{", "syntax")]
)
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes, reason: str) -> None:
    reply = http.post("/v1/advice", content=body, headers=JSON)
    assert_refused(reply, 400, "malformed-json", reason=reason)


def test_other_kinds_of_body_methods_and_parameters_are_refused(http: httpx.Client) -> None:
    reply = http.post("/v1/advice", content=b"", headers={"Content-Type": "application/vnd.safetensors"})
    assert_refused(reply, 415, "unsupported-media-type", supported=["application/json"])
    assert_refused(http.post("/v1/advice", json=MLP, params={"verbose": "1"}), 422, "invalid-field", field="verbose")
    assert http.get("/v1/advice").status_code == 405


def test_the_pages_example_is_what_the_server_answers(http: httpx.Client) -> None:
    found = re.search(r"-d '(.*?)'\n\n(    \{.*?\n    \})\n\n", PAGE, re.DOTALL)
    assert found is not None
    assert ask(http, **json.loads(found[1])) == json.loads(found[2])


def test_the_page_describes_every_field_of_the_question(contract: Contract) -> None:
    schemas = contract.document["components"]["schemas"]
    task, data = schemas["Task"]["properties"], schemas["TaskData"]["properties"]
    for name in [*task, *data, *task["model"]["enum"], *task["symptoms"]["items"]["enum"]]:
        assert f"`{name}`" in PAGE, name
