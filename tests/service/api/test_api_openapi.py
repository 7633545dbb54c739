"""The OpenAPI document: whole, and true. That replies keep to it is checked with every call of these tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_subject import Subject
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator, ValidationError
from openapi_contract import Contract

from optimd_service.api import advice, catalogue, health, history, params, problems, sessions, time_travel
from optimd_service.errors import every_problem
from reaching import http_client

METHODS = {"get", "put", "post", "patch", "delete"}
MODULES = (sessions, params, time_travel, history, catalogue, advice, health, problems)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_is_documented(contract: Contract) -> None:
    documented = {(path, method) for path, method, _ in operations(contract.document)}
    routed = {
        (route.path, method.lower())
        for router in (sessions.costs, *(m.router for m in MODULES))
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert documented == routed | {("/v1/sessions/{session_id}/steps", "post")}


def test_the_document_is_sound(contract: Contract) -> None:
    document = contract.document
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"] == "optimd"
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for path, method, operation in operations(document):
        assert method in METHODS
        assert operation["summary"]
        assert operation["responses"]
        in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path" and p["required"]}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        named = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", [])]
        assert len(set(named)) == len(named)
        for status, reply in operation["responses"].items():
            assert reply["description"]
            if int(status) >= 400 and "/readyz" not in path:
                assert reply["content"].keys() == {"application/problem+json"}


def test_every_schema_is_used(contract: Contract) -> None:
    used = {reference.rpartition("/")[2] for reference in references(contract.document)}
    assert used == contract.document["components"]["schemas"].keys()


def test_every_problem_but_those_of_the_routing_is_documented_somewhere(contract: Contract) -> None:
    text = str(contract.document["paths"])
    elsewhere = {"internal-error", "method-not-allowed"}
    assert {cls.slug for cls in every_problem() if f"`{cls.slug}`" not in text} == elsewhere


def test_every_parameter_says_what_it_is(contract: Contract) -> None:
    parameters = [
        (method, path, parameter["name"], parameter.get("description"))
        for path, method, operation in operations(contract.document)
        for parameter in operation.get("parameters", [])
        if parameter["in"] != "path"
    ]
    assert {name for *_, name, _ in parameters} >= {"weights", "strict", "dtype", "names", "pull", "status", "If-Match"}
    assert [parameter for parameter in parameters if not parameter[-1]] == []


def test_examples_keep_to_their_schemas_and_are_taken(http: httpx.Client, contract: Contract) -> None:
    shown = {
        (method, path): operation["requestBody"]["content"]["application/json"]
        for path, method, operation in operations(contract.document)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    for content in shown.values():
        contract.validate(content["schema"], content["example"])
    reply = http.post("/v1/sessions", json=shown.pop(("post", "/v1/sessions"))["example"])
    assert reply.status_code == 201
    subject = Subject(http, reply.headers["Location"])
    assert len(shown) == 10
    for (method, path), content in shown.items():
        path = path.replace("/v1/sessions/{session_id}", subject.path)  # noqa: PLW2901
        reply = http.request(method, path, json=content["example"], headers={"If-Match": subject.etag()})
        assert reply.status_code in {200, 201}, reply.text


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("SessionDescription", {"optimizer": {"name": "adamw", "lr": -1}}),
        ("SessionDescription", {"optimizer": {"name": "none"}}),
        ("PushBody", {"grads": {}, "epoch": 1}),
        ("SessionChange", {"step": 1}),
        ("ProblemDocument", {"type": "about:blank", "title": "x", "status": 400, "detail": "x"}),
    ],
)
def test_schemas_refuse_what_the_server_refuses(contract: Contract, schema: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        contract.validate({"$ref": f"#/components/schemas/{schema}"}, wrong)


def test_the_catalogue_is_in_the_document(http: httpx.Client, contract: Contract) -> None:
    choices = contract.document["components"]["schemas"]["OptimizerDescription"]["oneOf"]
    rows = http.get("/v1/optimizers").json()["optimizers"]
    assert [choice["properties"]["name"]["const"] for choice in choices] == [row["name"] for row in rows]
    for row in rows:
        assert http.get(f"/v1/optimizers/{row['name']}").json() == row
        Draft202012Validator(row["hyperparameters"]).validate(row["defaults"])


def test_the_server_is_alive_and_has_a_page(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "alive"}
    assert "text/html" in http.get("/docs").headers["content-type"]


def test_the_docs_page_needs_no_other_server(server_url: str) -> None:
    with http_client(server_url) as browser:
        page = browser.get("/docs").text
        linked = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(linked) >= 3
        for address in linked:
            assert address.startswith("/")
            assert browser.get(address).status_code == 200
