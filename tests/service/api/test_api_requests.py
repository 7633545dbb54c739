"""Requests that are wrong before their body is: routes, methods, queries, kinds of reply."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from api_subject import GRADS, SAFETENSORS, Subject, assert_refused

from raw_safetensors import tensor_file

MISSING = "0" * 20
WRONG_QUERIES: list[tuple[str, str, str]] = [
    ("POST", "/steps?pull=banana", "pull"),
    ("POST", "/steps?pull=", "pull"),
    ("POST", "/steps?pull=bf16&wait=1", "wait"),
    ("POST", "/steps?" + "x" * 5000, "x" * 80),
    ("GET", "/params?dtype=i8", "dtype"),
    ("GET", "/params?names=nobody", "names"),
    ("GET", "/params?names=weight&names=../../bias", "names"),
    ("GET", "/params?names=", "names"),
    ("GET", "/steps?limit=0", "limit"),
    ("GET", "/steps?limit=10001", "limit"),
    ("GET", "/steps?limit=ten", "limit"),
    ("GET", "/steps?after=-1", "after"),
    ("GET", f"/steps?after={2**63}", "after"),
    ("GET", f"/steps?after={'9' * 5000}", "after"),
    ("GET", "/steps/0", "step"),
    ("GET", "/steps/-1", "step"),
    ("GET", "/steps/first", "step"),
    ("GET", f"/steps/{2**63}", "step"),
    ("GET", "/events?limit=0", "limit"),
    ("GET", f"/events?after={2**63}", "after"),
]
METHODS = [
    ("PUT", "/steps", "GET, POST"),
    ("DELETE", "/params", "GET, PUT"),
    ("POST", "/state", "GET, PUT"),
    ("POST", "", "DELETE, GET, PATCH"),
    ("POST", "/events", "GET"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("method", "below", "field"), WRONG_QUERIES, ids=lambda value: value[:30])
def test_a_wrong_parameter_is_refused_by_its_name(subject: Subject, method: str, below: str, field: str) -> None:
    body: dict[str, Any] = {"content": tensor_file(GRADS)} if method == "POST" else {}
    headers = {**SAFETENSORS, "If-Match": '"1.0"'}
    reply = subject.http.request(method, subject.path + below, headers=headers, **body)
    assert_refused(reply, 422, "invalid-field", field=field)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "status=dead", "after=" + "0" * 65])
def test_the_list_refuses_a_wrong_parameter(http: httpx.Client, query: str) -> None:
    reply = http.get(f"/v1/sessions?{query}")
    assert_refused(reply, 422, "invalid-field", field=query.partition("=")[0])


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "accept", ["text/html", "image/*", "application/json;q=0", "application/json;q=x", "", ";", "x" * 10_000]
)
def test_a_kind_of_reply_that_there_is_not_is_refused(subject: Subject, accept: str) -> None:
    headers = {**SAFETENSORS, "Accept": accept, "If-Match": '"1.0"'}
    reply = subject.http.post(f"{subject.path}/steps", content=tensor_file(GRADS), headers=headers)
    assert_refused(reply, 406, "not-acceptable")
    assert_refused(subject.http.get(f"{subject.path}/params", headers={"Accept": accept}), 406, "not-acceptable")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/vnd.safetensors"),
        ("application/*", "application/vnd.safetensors"),
        ("application/octet-stream", "application/vnd.safetensors"),
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("application/json;q=0.5, application/vnd.safetensors", "application/vnd.safetensors"),
        ("application/vnd.safetensors;q=0.1, application/json;q=0.2", "application/json"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "application/json"),
    ],
)
def test_the_kind_that_accept_likes_best_is_given(subject: Subject, accept: str, kind: str) -> None:
    assert subject.http.get(f"{subject.path}/params", headers={"Accept": accept}).headers["content-type"] == kind
    headers = {**SAFETENSORS, "Accept": accept, "If-Match": '"1.0"'}
    reply = subject.http.post(f"{subject.path}/steps", content=tensor_file(GRADS), headers=headers)
    assert reply.headers["content-type"] == kind


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/v2/sessions", "/v1/sessions/", "/v1/sessions//steps", "/%00", "/..%2f..%2fetc/passwd"]
)
def test_an_unknown_route_is_not_found(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        assert_refused(http.request(method, path), 404, "route-not-found")


@pytest.mark.parametrize(("method", "below", "allowed"), METHODS, ids=str)
def test_a_method_that_the_route_does_not_take_is_told_which_it_does(
    subject: Subject, method: str, below: str, allowed: str
) -> None:
    reply = subject.http.request(method, subject.path + below)
    assert_refused(reply, 405, "method-not-allowed", allow=reply.headers["allow"])
    assert ", ".join(sorted(reply.headers["allow"].split(", "))) == allowed


@pytest.mark.parametrize("session", [MISSING, "x" * 3000, "%00", "%ff", "__proto__", "'; DROP TABLE sessions; --"])
def test_a_session_that_never_was_is_not_found(http: httpx.Client, session: str) -> None:
    path = f"/v1/sessions/{session}"
    for method, below in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/params"),
        ("GET", "/state"),
        ("GET", "/steps"),
        ("GET", "/events"),
        ("GET", "/steps/1"),
    ):
        assert_refused(http.request(method, path + below), 404, "session-not-found")
    for method, below in (("POST", "/steps"), ("PUT", "/params"), ("PUT", "/state")):
        headers = {**SAFETENSORS, "If-Match": '"0"'}
        reply = http.request(method, path + below, content=tensor_file(GRADS), headers=headers)
        assert_refused(reply, 404, "session-not-found")
    assert_refused(http.patch(path, json={"name": "x"}), 404, "session-not-found")


def test_a_step_that_never_was_is_not_found(subject: Subject) -> None:
    for step in (2, 2**63 - 1):
        assert_refused(subject.http.get(f"{subject.path}/steps/{step}"), 404, "step-not-found")


def test_an_optimizer_that_there_is_not_is_not_found(http: httpx.Client) -> None:
    for name in ("adamz", "__proto__", "x" * 3000):
        assert_refused(http.get(f"/v1/optimizers/{name}"), 404, "optimizer-not-found")
    reply = http.get("/v1/optimizers/LBFGS")
    assert_refused(reply, 404, "optimizer-not-found")
    assert "evaluates the loss several times" in reply.json()["detail"]


def test_every_problem_has_its_page(http: httpx.Client) -> None:
    listed = http.get("/problems").json()["problems"]
    assert len({problem["type"] for problem in listed}) == len(listed) > 25
    for problem in listed:
        assert http.get(problem["type"]).json() == problem
    assert_refused(http.get("/problems/none"), 404, "route-not-found")


def test_nothing_on_the_inside_is_shown(http: httpx.Client, subject: Subject) -> None:
    replies = [
        http.get("/nowhere"), http.get(f"/v1/sessions/{MISSING}"), subject.push(if_match='"9"'),
        http.post("/v1/sessions", content=b"{", headers={"Content-Type": "application/json"}),
        http.post("/v1/sessions", json={"optimizer": {"name": "adam", "betas": [2, 2]}, "params": {"w": [1]}}),
    ]  # fmt: skip
    for reply in replies:
        assert reply.status_code >= 400
        for secret in ("optimd_service", "Traceback", ".py", "sqlite", "SELECT", "0x", "pydantic", "/home", "/tmp"):  # noqa: S108
            assert secret not in reply.text


@pytest.mark.parametrize("below", ["", "/params", "/state", "/steps", "/steps/1", "/events"])
def test_a_parameter_that_a_call_does_not_know_is_refused(subject: Subject, below: str) -> None:
    reply = subject.http.get(f"{subject.path}{below}", params={"nmaes": "weight"})
    assert_refused(reply, 422, "invalid-field", field="nmaes")
