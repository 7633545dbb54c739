"""JSON that is none, or that says what cannot be, at every call that takes it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from api_subject import GRADS, JSON, Subject, assert_refused, lists

SGD = {"name": "sgd"}
W = [{"name": "w", "shape": [2, 2]}]
DEEP = b"[" * 1_000_000
GOOD_GRADS = json.dumps(lists(GRADS)).encode()
CALLS = [("POST", "/steps", b"grads"), ("PUT", "/params", b"params"), ("PATCH", "", b"name"), ("POST", None, b"params")]

# %s stands for a field that the call knows.
MALFORMED: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "syntax"),
    ("half an object", b'{"%s": 1', "syntax"),
    ("two objects", b"{}{}", "syntax"),
    ("single quotes", b"{'%s': 1}", "syntax"),
    ("a trailing comma", b'{"%s": 1,}', "syntax"),
    ("a comment", b'{"%s": 1 /* one */}', "syntax"),
    ("a list", b"[]", "not-an-object"),
    ("null", b"null", "not-an-object"),
    ("a string", b'"x"', "not-an-object"),
    ("NaN", b'{"%s": NaN}', "NaN"),
    ("infinity", b'{"%s": [[-Infinity]]}', "-Infinity"),
    ("1e999", b'{"%s": 1e999}', "number-range"),
    ("an integer of 5,000 digits", b'{"%s": ' + b"1" * 5000 + b"}", "number-range"),
    ("a million brackets", b'{"%s": ' + DEEP, "nesting"),
    ("a million braces", b'{"%s": ' + b'{"a":' * 200_000, "nesting"),
    ("a field twice", b'{"%s": 1, "%s": 2}', "duplicate-field"),
    ("a field twice, further in", b'{"%s": {"a": 1, "a": 2}}', "duplicate-field"),
    ("invalid UTF-8", b'{"%s": "\xff"}', "utf-8"),
    ("UTF-16", '{"name": 1}'.encode("utf-16"), "utf-8"),
    ("half a surrogate in UTF-8", b'{"%s": "\xed\xa0\x80"}', "utf-8"),
]
TENSORS: list[tuple[str, Any, str]] = [
    ("null", None, "weight"),
    ("a string", "1", "weight"),
    ("an object", {"0": 1}, "weight"),
    ("strings", [["1", "2", "3"], ["1", "2", "3"]], "weight"),
    ("true among numbers", [[1, 2, 3], [1, True, 3]], "weight"),
    ("null among numbers", [[1, 2, 3], [1, None, 3]], "weight"),
    ("ragged rows", [[1, 2, 3], [1, 2]], "weight"),
    ("a number beside a row", [[1, 2, 3], 1], "weight"),
    ("a row inside a row", [[1, 2, 3], [1, [2], 3]], "weight"),
    ("an integer of 400 digits", [[10**400, 2, 3], [1, 2, 3]], "weight"),
]
PUSHES: list[tuple[dict[str, Any], str]] = [
    ({}, "grads"),
    ({"grads": None}, "grads"),
    ({"grads": []}, "grads"),
    ({"grads": "weight"}, "grads"),
    ({"grads": lists(GRADS), "epoch": 1}, "epoch"),
    ({"grads": lists(GRADS), "params": {}}, "params"),
    ({"grads": lists(GRADS), "\ud800": 1}, "\ud800"),
    ({"grads": lists(GRADS), "x" * 100_000: 1}, "x" * 80),
    ({"grads": lists(GRADS), "loss": "0.5"}, "loss"),
    ({"grads": lists(GRADS), "loss": True}, "loss"),
    ({"grads": lists(GRADS), "loss": 10**400}, "loss"),
    ({"grads": lists(GRADS), "num_examples": 2**63}, "num_examples"),
    ({"grads": lists(GRADS), "num_examples": 1.0}, "num_examples"),
    ({"grads": lists(GRADS), "worker": 7}, "worker"),
    ({"grads": lists(GRADS), "worker": "\ud800"}, "worker"),
    ({"grads": lists(GRADS), "hyperparameters": 0.1}, "hyperparameters"),
    ({"grads": lists(GRADS), "hyperparameters": {"groups": {"nobody": {}}}}, "groups"),
]
PATCHES: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.1}, "lr"),
    ({"step": 2**63}, "step"),
    ({"seed": 1}, "seed"),
    ({"name": 7}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "a\0"}, "name"),
    ({"name": "\ud800"}, "name"),
    ({"nonfinite": "ignore"}, "nonfinite"),
    ({"optimizer": []}, "optimizer"),
    ({"groups": {"no_decay": {}}}, "groups"),
    ({"groups": [{"lr": 1}]}, "groups.0.name"),
    ({"groups": [{"name": "nobody", "lr": 1}]}, "groups"),
    ({"groups": [{"name": "no_decay"}] * 2}, "groups"),
    ({"groups": [{"name": f"g{i}"} for i in range(100_000)]}, "groups"),
]
PATCHED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"lr": -1}}, "optimizer.lr"),
    ({"optimizer": {"lr": 10**400}}, "optimizer.lr"),
    ({"optimizer": {"betas": [1, 1]}}, "optimizer.betas.0"),
    ({"optimizer": {"eps": 0}}, "optimizer.eps"),
    ({"optimizer": {"momentum": 0.9}}, "optimizer.momentum"),
    ({"optimizer": {"amsgrad": True}}, "amsgrad"),
    ({"groups": [{"name": "no_decay", "lr": "1"}]}, "groups.no_decay.lr"),
    # All or nothing: the name before it is good.
    ({"name": "new", "nonfinite": "skip", "optimizer": {"lr": 0.5, "weight_decay": -1}}, "optimizer.weight_decay"),
]
CREATED: list[tuple[dict[str, Any], str]] = [
    ({}, "optimizer"),
    ({"optimizer": "sgd", "tensors": W}, "optimizer"),
    ({"optimizer": {}, "tensors": W}, "optimizer.name"),
    ({"optimizer": {"name": "sgdd"}, "tensors": W}, "optimizer.name"),
    ({"optimizer": {"name": "__proto__"}, "tensors": W}, "optimizer.name"),
    ({"optimizer": SGD}, "tensors"),
    ({"optimizer": SGD, "tensors": []}, "tensors"),
    ({"optimizer": SGD, "tensors": None}, "tensors"),
    ({"optimizer": SGD, "tensors": W, "epochs": 3}, "epochs"),
    ({"optimizer": SGD, "tensors": W + W}, "tensors"),
    ({"optimizer": SGD, "tensors": [{"name": "w"}]}, "tensors.0.shape"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": 2}]}, "tensors.0.shape"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [-1]}]}, "tensors.0.shape.0"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [2.0]}]}, "tensors.0.shape.0"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [True]}]}, "tensors.0.shape.0"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [2**63]}]}, "tensors.0.shape.0"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [1] * 33}]}, "tensors.0.shape"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [1], "dtype": "I8"}]}, "tensors.0.dtype"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [1], "dtype": "BF16"}]}, "tensors.0.dtype"),
    ({"optimizer": SGD, "tensors": [{"name": "w", "shape": [1], "requires_grad": True}]}, "tensors.0.requires_grad"),
    ({"optimizer": SGD, "tensors": [{**W[0], "dtype": "F64"}, {"name": "v", "shape": []}]}, "tensors"),
    ({"optimizer": SGD, "tensors": W, "seed": -1}, "seed"),
    ({"optimizer": SGD, "tensors": W, "seed": 2**63}, "seed"),
    ({"optimizer": SGD, "tensors": W, "seed": True}, "seed"),
    ({"optimizer": SGD, "tensors": W, "nonfinite": "ignore"}, "nonfinite"),
    ({"optimizer": SGD, "tensors": W, "durability": "for ever"}, "durability"),
    ({"optimizer": SGD, "tensors": W, "storage": {"backend": "tape"}}, "storage.backend"),
    ({"optimizer": SGD, "tensors": W, "name": "x" * 201}, "name"),
    ({"optimizer": SGD, "tensors": W, "params": {"w": [1, 2]}, "groups": 1}, "groups"),
    ({"optimizer": SGD, "params": {}}, "tensors"),
    ({"optimizer": SGD, "params": []}, "params"),
    ({"optimizer": SGD, "params": {"w": "1"}}, "w"),
    ({"optimizer": SGD, "params": {"w": [True]}}, "w"),
    ({"optimizer": SGD, "params": {"w": [[1], [1, 2]]}}, "w"),
    ({"optimizer": SGD, "tensors": W, "groups": [{"match": ["b"]}]}, "groups"),
    (
        {"optimizer": SGD, "tensors": W, "groups": [{"name": "a", "match": ["w"]}, {"name": "a", "match": ["*"]}]},
        "groups",
    ),
    ({"optimizer": SGD, "tensors": W, "groups": [{"match": "w"}]}, "groups.0.match"),
    ({"optimizer": SGD, "tensors": [{**W[0], "group": "nobody"}]}, "tensors.group"),
    ({"optimizer": SGD, "tensors": W, "groups": [{"match": ["w"]}] * 100_000}, "groups"),
    ({"optimizer": SGD, "tensors": W, "groups": [{"match": ["x*"] * 1_001}]}, "groups"),
    ({"optimizer": SGD, "tensors": W, "groups": [{"match": ["x" * 513]}]}, "groups.0.match.0"),
    ({"optimizer": SGD, "tensors": [{**W[0], "init": {"name": "magic"}}]}, "tensors.0.init.name"),
    ({"optimizer": SGD, "tensors": [{**W[0], "init": {"name": "normal", "std": -1}}]}, "tensors.0.init.std"),
    ({"optimizer": SGD, "tensors": [{**W[0], "init": {"name": "constant"}}]}, "tensors.0.init.val"),
    (
        {"optimizer": SGD, "tensors": [{"name": "w", "shape": [2], "init": {"name": "orthogonal"}}]},
        "tensors.0.init.name",
    ),
]
HYPERPARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"name": "sgd", "lr": -1}, "optimizer.lr"),
    ({"name": "adam", "betas": [1, 1]}, "optimizer.betas.0"),
    ({"name": "adamw", "eps": 0}, "optimizer.eps"),
    ({"name": "sgd", "betas": [0.9, 0.9]}, "optimizer.betas"),
    ({"name": "sgd", "lr": "1"}, "optimizer.lr"),
    ({"name": "sgd", "lr": 10**400}, "optimizer.lr"),
    ({"name": "sgd", "nesterov": True}, "optimizer.nesterov"),
]


def short(value: Any) -> str:
    return str(value)[:50]


def send(subject: Subject, method: str, below: str | None, body: Any) -> httpx.Response:
    path = "/v1/sessions" if below is None else subject.path + below
    content = body if isinstance(body, bytes) else json.dumps(body)
    return subject.http.request(method, path, content=content, headers={**JSON, "If-Match": '"1.0"'})


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("text", "reason"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_what_is_no_strict_json_is_refused(subject: Subject, text: bytes, reason: str) -> None:
    for method, below, field in CALLS:
        reply = send(subject, method, below, text.replace(b"%s", field))
        assert_refused(reply, 400, "malformed-json", reason=reason)


@pytest.mark.usefixtures("unchanged")
def test_a_body_over_16_mib_is_refused_with_the_limit(subject: Subject) -> None:
    for method, below, _ in CALLS:
        reply = send(subject, method, below, b" " * (16 * 1024 * 1024 + 1))
        assert_refused(reply, 413, "too-large", limit=16 * 1024 * 1024)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("value", "field"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS])
def test_what_is_no_tensor_is_refused_by_its_name(subject: Subject, value: Any, field: str) -> None:
    tensors = {**lists(GRADS), "weight": value}
    for method, below, what in (("POST", "/steps", "grads"), ("PUT", "/params", "params")):
        assert_refused(send(subject, method, below, {what: tensors}), 422, "invalid-field", field=field)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "field"), PUSHES, ids=short)
def test_a_push_names_the_field_that_is_wrong(subject: Subject, body: dict[str, Any], field: str) -> None:
    assert_refused(send(subject, "POST", "/steps", body), 422, "invalid-field", field=field)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("body", [{}, {"params": 1}, {"params": lists(GRADS), "step": 2**63}], ids=short)
def test_weights_name_the_field_that_is_wrong(subject: Subject, body: dict[str, Any]) -> None:
    field = "step" if "step" in body else "params"
    assert_refused(send(subject, "PUT", "/params", body), 422, "invalid-field", field=field)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "field"), PATCHES, ids=short)
def test_a_change_names_the_field_that_is_wrong(subject: Subject, body: dict[str, Any], field: str) -> None:
    assert_refused(send(subject, "PATCH", "", body), 422, "invalid-field", field=field)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "field"), PATCHED, ids=short)
def test_a_change_happens_wholly_or_not_at_all(subject: Subject, body: dict[str, Any], field: str) -> None:
    assert_refused(send(subject, "PATCH", "", body), 422, "invalid-hyperparameter", field=field)


@pytest.mark.parametrize(("body", "field"), CREATED, ids=short)
def test_a_description_names_the_field_that_is_wrong(http: httpx.Client, body: dict[str, Any], field: str) -> None:
    reply = http.post("/v1/sessions", content=json.dumps(body), headers=JSON)
    assert_refused(reply, 422, "invalid-field", field=field)


@pytest.mark.parametrize(("optimizer", "field"), HYPERPARAMETERS, ids=short)
def test_a_description_names_the_hyperparameter_that_is_wrong(
    http: httpx.Client, optimizer: dict[str, Any], field: str
) -> None:
    reply = http.post("/v1/sessions", content=json.dumps({"optimizer": optimizer, "tensors": W}), headers=JSON)
    assert_refused(reply, 422, "invalid-hyperparameter", field=field)


def test_inline_weights_that_do_not_fit_are_refused(http: httpx.Client) -> None:
    def create(params: dict[str, Any]) -> httpx.Response:
        return http.post("/v1/sessions", json={"optimizer": SGD, "tensors": W, "params": params})

    assert_refused(create({}), 422, "tensor-mismatch", missing=["w"], unknown=[])
    assert_refused(create({"w": [1, 2]}), 422, "shape-mismatch", tensor="w", expected=[2, 2], got=[2])
    assert_refused(create({"w": [[1, 2], [3, 1e300]]}), 422, "nonfinite-params", tensors=["w"])


def test_more_memory_than_there_is_is_refused_with_both_figures(http: httpx.Client) -> None:
    before = http.get("/readyz").json()["sessions"]
    for shape in ([2**45], [2**62, 2**62]):
        body = {"optimizer": {"name": "adamw"}, "tensors": [{"name": "w", "shape": shape}]}
        reply = http.post("/v1/sessions", json=body)
        needed = 16 * (2**45 if len(shape) == 1 else 2**124)
        assert_refused(reply, 507, "insufficient-memory", needed_bytes=needed)
    assert http.get("/readyz").json()["sessions"] == before
