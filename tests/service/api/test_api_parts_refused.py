"""Parts of a push that are none: each is told why, and takes nothing away from what has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from api_parts import PARAMS, complete, parts, send
from api_subject import JSON, SAFETENSORS, Subject, assert_equal, assert_refused, receipt_of

from raw_safetensors import tensor_file

BUFFERS = {"mean": torch.zeros(2), "var": torch.ones(2)}
FROZEN = {"table": torch.zeros(3, 2)}
GRADS = {name: torch.ones_like(tensor) for name, tensor in PARAMS.items()}
REFUSED = Callable[[Subject], httpx.Response]


@pytest.fixture
def subject(http: httpx.Client) -> Subject:
    """All but `f.weight` has come."""
    params = {**PARAMS, **BUFFERS, **FROZEN}
    subject = Subject.create(http, "sgd", params=params, buffers=list(BUFFERS), frozen=list(FROZEN), lr=1.0)
    assert send(subject, *parts(GRADS, "abcde")).status_code == 200
    return subject


@pytest.fixture(autouse=True)
def nothing_lost(subject: Subject) -> Iterator[None]:
    before = subject.stands()
    yield
    assert subject.stands() == before
    assert receipt_of(complete(subject, *parts(GRADS, "f")))["step"] == 1
    assert_equal(subject.pull(), {**{name: PARAMS[name] - 1 for name in PARAMS}, **BUFFERS, **FROZEN})


def raw(subject: Subject, content: bytes, **query: str) -> httpx.Response:
    headers = {**SAFETENSORS, "Idempotency-Key": "raw"}
    return subject.http.post(f"{subject.path}/steps", content=content, headers=headers, params=query)


def in_json(subject: Subject, body: Any, **query: str) -> httpx.Response:
    headers = {**JSON, "Idempotency-Key": "raw"}
    return subject.http.post(f"{subject.path}/steps", json=body, headers=headers, params=query)


KINDS = pytest.mark.parametrize("kind", ["safetensors", "json"])
COMPLETES = pytest.mark.parametrize("completes", [False, True], ids=["part", "complete"])


@KINDS
@COMPLETES
@pytest.mark.parametrize("name", ["unknown", "table"])
def test_a_tensor_that_is_not_trained_is_unknown(subject: Subject, kind: str, completes: bool, name: str) -> None:
    grads = {"a.bias": torch.zeros(3), name: torch.zeros(3, 2)}
    reply = send(subject, grads, kind=kind, complete=completes)
    assert_refused(reply, 422, "tensor-mismatch", unknown=[name], missing=[])


@KINDS
@COMPLETES
def test_a_tensor_of_another_shape_is_refused(subject: Subject, kind: str, completes: bool) -> None:
    grads = {"a.bias": torch.zeros(3), "c.weight": torch.zeros(4, 3)}
    reply = send(subject, grads, kind=kind, complete=completes)
    assert_refused(reply, 422, "shape-mismatch", tensor="c.weight", expected=[3, 4], got=[4, 3])


@COMPLETES
def test_rows_are_refused(subject: Subject, completes: bool) -> None:
    rows = {"c.weight#rows": torch.tensor([0]), "c.weight#values": torch.zeros(1, 4)}
    reply = send(subject, {"a.bias": torch.zeros(3), **rows}, complete=completes)
    assert_refused(reply, 422, "invalid-field", field="c.weight")
    query = {"contribution": "c", **({"complete": "true"} if completes else {})}
    body = {"grads": {"a.bias": [0, 0, 0], "c.weight": {"rows": [0], "values": [[0, 0, 0, 0]]}}}
    reply = in_json(subject, body, **query)
    assert_refused(reply, 422, "invalid-field", field="c.weight")
    assert "whole" in reply.json()["detail"]


@KINDS
def test_buffers_come_with_the_last_part_alone_and_all_of_them(subject: Subject, kind: str) -> None:
    grads = {"a.bias": torch.zeros(3)}
    reply = send(subject, grads, buffers=BUFFERS, kind=kind)
    assert_refused(reply, 422, "invalid-field", field="mean")
    reply = complete(subject, *parts(GRADS, "f"), buffers={"var": torch.zeros(2)}, kind=kind)
    assert_refused(reply, 422, "tensor-mismatch", missing=["mean"], unknown=[])


def test_a_gradient_among_the_buffers_is_refused(subject: Subject) -> None:
    buffers = {**BUFFERS, "f.weight": torch.zeros(1, 2)}
    assert_refused(complete(subject, buffers=buffers, kind="json"), 422, "tensor-mismatch", unknown=["f.weight"])
    reply = complete(subject, {**parts(GRADS, "f")[0], **BUFFERS}, kind="json")
    assert_refused(reply, 422, "tensor-mismatch", unknown=["mean", "var"])


@KINDS
def test_buffers_that_are_not_finite_are_refused(subject: Subject, kind: str) -> None:
    buffers = {**BUFFERS, "var": torch.full((2,), torch.finfo(torch.float64).max, dtype=torch.float64)}
    reply = complete(subject, *parts(GRADS, "f"), buffers=buffers, kind=kind)
    assert_refused(reply, 422, "nonfinite-params", tensors=["var"])


@KINDS
def test_an_empty_part_is_refused(subject: Subject, kind: str) -> None:
    assert_refused(send(subject, {}, kind=kind), 422, "invalid-field", field="grads")


@KINDS
@pytest.mark.parametrize(
    ("field", "value"), [("loss", 0.5), ("num_examples", 3), ("worker", "w"), ("hyperparameters", {"lr": 0.1})]
)
def test_what_is_said_of_the_step_is_said_with_the_last_part(
    subject: Subject, kind: str, field: str, value: Any
) -> None:
    reply = send(subject, {"e.empty": torch.zeros(0, 2)}, kind=kind, **{field: value})
    assert_refused(reply, 422, "invalid-field", field=field)
    assert "complete=true" in reply.json()["detail"]


def test_json_that_is_no_part_is_refused(subject: Subject) -> None:
    bodies: list[Any] = [{}, {"grads": None}, {"grads": []}, {"grads": {}, "buffers": []}, {"grads": {}, "epoch": 1}]
    for body in bodies:
        assert in_json(subject, body, contribution="c", complete="true").json()["type"] == "/problems/invalid-field"
        assert in_json(subject, body, contribution="c").json()["type"] == "/problems/invalid-field"
    assert_refused(in_json(subject, {"grads": {"a.bias": [1, 2, [3]]}}, contribution="c"), 422, "invalid-field")
    assert_refused(in_json(subject, [], contribution="c"), 400, "malformed-json")


def test_a_dtype_that_is_no_gradients_is_refused(subject: Subject) -> None:
    reply = send(subject, {"a.bias": torch.zeros(3, dtype=torch.int64)})
    assert_refused(reply, 415, "unsupported-dtype", tensor="a.bias", dtype="I64")


@pytest.mark.parametrize("damage", [lambda file: file[:20], lambda file: b"\x00" + file, lambda file: file[8:]])
def test_a_file_that_is_damaged_is_refused(subject: Subject, damage: Callable[[bytes], bytes]) -> None:
    reply = raw(subject, damage(tensor_file(parts(GRADS, "ab")[0])), contribution="c")
    assert reply.json()["type"] in {"/problems/malformed-safetensors", "/problems/too-large"}


QUERIES = [
    ({"contribution": ""}, "contribution"),
    ({"contribution": "x" * 65}, "contribution"),
    ({"contribution": "two words"}, "contribution"),
    ({"contribution": "schön"}, "contribution"),
    ({"contribution": "c", "complete": "yes"}, "complete"),
    ({"contribution": "c", "complete": ""}, "complete"),
    ({"complete": "true"}, "complete"),
    ({"complete": "false"}, "complete"),
    ({"contribution": "c", "pull": "f32"}, "pull"),
    ({"contribution": "c", "pull": "f33"}, "pull"),
    ({"contribution": "c", "weight": "2"}, "weight"),
]


@pytest.mark.parametrize(("query", "field"), QUERIES, ids=str)
def test_a_query_that_cannot_be_meant_is_refused_by_its_parameter(
    subject: Subject, query: dict[str, str], field: str
) -> None:
    reply = raw(subject, tensor_file(parts(GRADS, "a")[0]), **query)
    assert_refused(reply, 422, "invalid-field", field=field)


def test_the_longest_name_and_an_explicit_false_are_taken(subject: Subject) -> None:
    assert send(subject, *parts(GRADS, "a"), query={"complete": "false", "pull": "none"}).status_code == 200
    other = Subject.create(subject.http, params=PARAMS)
    assert send(other, GRADS, "~" * 64).status_code == 200


def test_parts_to_a_session_that_is_gone_are_not_found(subject: Subject) -> None:
    gone = Subject.create(subject.http, params=PARAMS)
    send(gone, *parts(GRADS, "abcde"))
    gone.http.delete(gone.path)
    assert_refused(send(gone, *parts(GRADS, "f")), 404, "session-not-found")
    assert_refused(complete(gone, *parts(GRADS, "f")), 404, "session-not-found")


def test_the_last_part_says_what_it_builds_on_or_who_it_is(subject: Subject) -> None:
    query = {"contribution": "c", "complete": "true"}
    content = tensor_file(parts(GRADS, "f")[0])
    reply = subject.http.post(f"{subject.path}/steps", content=content, headers=SAFETENSORS, params=query)
    assert_refused(reply, 428, "precondition-required")
