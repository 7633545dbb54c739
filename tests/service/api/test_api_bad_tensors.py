"""Well-formed bodies whose tensors are not the session's, and what a push says of itself."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, JSON, SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, lists

from raw_safetensors import entry, raw_file, tensor_file

NAN, INF = float("nan"), float("inf")
ONE = torch.tensor([1.0])
LONG = "x" * 1_000_000
# The tensors sent, those of the session that are missing, and those that it does not have.
NAMES: list[tuple[str, dict[str, torch.Tensor], list[str], list[str]]] = [
    ("none", {}, ["bias", "weight"], []),
    ("one missing", {"weight": GRADS["weight"]}, ["bias"], []),
    ("one extra", {**GRADS, "extra": ONE}, [], ["extra"]),
    ("another in its place", {"weight": GRADS["weight"], "bais": GRADS["bias"]}, ["bias"], ["bais"]),
    ("a path", {**GRADS, "../../bias": ONE}, [], ["../../bias"]),
    ("a prototype", {**GRADS, "__proto__": ONE}, [], ["__proto__"]),
    ("a script", {**GRADS, "<script>alert(1)</script>": ONE}, [], ["<script>alert(1)</script>"]),
    ("NUL", {**GRADS, "bias\0": ONE}, [], ["bias\0"]),
    ("a lone surrogate", {**GRADS, "\ud800": ONE}, [], ["\ud800"]),
    ("a megabyte of name", {**GRADS, LONG: ONE}, [], [LONG[:80]]),
    ("no name", {**GRADS, "": ONE}, [], [""]),
    ("eleven extra", {**GRADS, **{f"t{i:02}": ONE for i in range(11)}}, [], [f"t{i:02}" for i in range(10)]),
]
SHAPES = [(6,), (3, 2), (1, 2, 3), (2, 3, 1), (2, 2), (0, 3), ()]
# What `__metadata__` says of a push, and the field that is refused.
FACTS: list[tuple[dict[str, str], str]] = [
    ({"loss": "NaN"}, "loss"),
    ({"loss": "1e999"}, "loss"),
    ({"loss": "-Infinity"}, "loss"),
    ({"loss": '"0.5"'}, "loss"),
    ({"loss": "true"}, "loss"),
    ({"loss": "half"}, "loss"),
    ({"loss": ""}, "loss"),
    ({"loss": "9" * 5000}, "loss"),
    ({"loss": "9" * 400}, "loss"),
    ({"num_examples": "-1"}, "num_examples"),
    ({"num_examples": "1.5"}, "num_examples"),
    ({"num_examples": str(2**63)}, "num_examples"),
    ({"num_examples": "9" * 5000}, "num_examples"),
    ({"worker": "a\0b"}, "worker"),
    ({"worker": "a\nb"}, "worker"),
    ({"worker": "\ud800"}, "worker"),
    ({"worker": "w" * 201}, "worker"),
    ({"epoch": "1"}, "epoch"),
    ({"hyperparameters": "{"}, "hyperparameters"),
    ({"hyperparameters": "[]"}, "hyperparameters"),
    ({"hyperparameters": "[" * 1_000_000}, "hyperparameters"),
    ({"hyperparameters": '{"lr": 0.1, "lr": 0.2}'}, "hyperparameters"),
    ({"hyperparameters": '{"lr": NaN}'}, "hyperparameters"),
    ({"hyperparameters": '{"groups": []}'}, "hyperparameters.groups"),
    ({"hyperparameters": '{"groups": {"no_decay": 1}}'}, "hyperparameters.groups"),
    ({"hyperparameters": '{"groups": {"nobody": {"lr": 1}}}'}, "groups"),
]
OVERRIDES: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1}, "hyperparameters.lr"),
    ({"lr": "0.1"}, "hyperparameters.lr"),
    ({"lr": True}, "hyperparameters.lr"),
    ({"lr": None}, "hyperparameters.lr"),
    ({"lr": 10**400}, "hyperparameters.lr"),
    ({"betas": [1, 1]}, "hyperparameters.betas.0"),
    ({"betas": [0.9]}, "hyperparameters.betas.1"),
    ({"eps": 0}, "hyperparameters.eps"),
    ({"momentum": 0.9}, "hyperparameters.momentum"),
    ({"amsgrad": True}, "amsgrad"),
    ({"groups": {"no_decay": {"weight_decay": -1}}}, "hyperparameters.groups.no_decay.weight_decay"),
    ({"groups": {"no_decay": {"nesterov": True}}}, "hyperparameters.groups.no_decay.nesterov"),
]


def send(subject: Subject, below: str, body: Any) -> httpx.Response:
    """Send what stands at ``below`` its tensors, as safetensors (bytes) or as JSON."""
    method = "POST" if below == "/steps" else "PUT"
    match = {"If-Match": '"1.0"'}
    if isinstance(body, bytes):
        return subject.http.request(method, subject.path + below, content=body, headers={**SAFETENSORS, **match})
    content = json.dumps(body)
    return subject.http.request(method, subject.path + below, content=content, headers={**JSON, **match})


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("tensors", "missing", "unknown"), [n[1:] for n in NAMES], ids=[n[0] for n in NAMES])
def test_other_tensors_than_the_sessions_are_refused_by_name(
    subject: Subject, tensors: dict[str, torch.Tensor], missing: list[str], unknown: list[str]
) -> None:
    for below, field in (("/steps", "grads"), ("/params", "params")):
        for body in (tensor_file(tensors), {field: lists(tensors)}):
            reply = send(subject, below, body)
            assert_refused(reply, 422, "tensor-mismatch", missing=missing, unknown=unknown)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_another_shape_is_refused_with_both_shapes(subject: Subject, shape: tuple[int, ...]) -> None:
    tensors = {"weight": torch.zeros(shape), "bias": GRADS["bias"]}
    for below, field in (("/steps", "grads"), ("/params", "params")):
        reply = send(subject, below, tensor_file(tensors))
        assert_refused(reply, 422, "shape-mismatch", tensor="weight", expected=[2, 3], got=list(shape))
        reply = send(subject, below, {field: lists(tensors)})
        got = [0] if shape == (0, 3) else list(shape)  # all that [] can say
        assert_refused(reply, 422, "shape-mismatch", tensor="weight", expected=[2, 3], got=got)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_what_is_not_finite_is_refused_by_the_tensors_name(subject: Subject, value: float, dtype: torch.dtype) -> None:
    tensors = {"weight": GRADS["weight"].to(dtype), "bias": torch.tensor([1.0, value], dtype=dtype)}
    for below, slug in (("/steps", "nonfinite-gradients"), ("/params", "nonfinite-params")):
        assert_refused(send(subject, below, tensor_file(tensors)), 422, slug, tensors=["bias"])


@pytest.mark.usefixtures("unchanged")
def test_a_number_beyond_the_sessions_dtype_counts_as_infinite(subject: Subject) -> None:
    tensors = {**GRADS, "bias": torch.tensor([0.0, 1e300], dtype=torch.float64)}
    for below, field, slug in (
        ("/steps", "grads", "nonfinite-gradients"),
        ("/params", "params", "nonfinite-params"),
    ):
        for body in (tensor_file(tensors), {field: lists(tensors)}):
            assert_refused(send(subject, below, body), 422, slug, tensors=["bias"])


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("metadata", "field"), FACTS, ids=lambda value: str(value)[:40])
def test_a_fact_that_cannot_be_is_refused_by_its_name(subject: Subject, metadata: dict[str, str], field: str) -> None:
    assert_refused(send(subject, "/steps", tensor_file(GRADS, metadata)), 422, "invalid-field", field=field)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("overrides", "field"), OVERRIDES, ids=lambda value: str(value)[:40])
def test_a_hyperparameter_that_cannot_be_is_refused_by_its_name(
    subject: Subject, overrides: dict[str, Any], field: str
) -> None:
    for body in (
        tensor_file(GRADS, {"hyperparameters": json.dumps(overrides)}),
        {"grads": lists(GRADS), "hyperparameters": overrides},
    ):
        assert_refused(send(subject, "/steps", body), 422, "invalid-hyperparameter", field=field)


@pytest.mark.usefixtures("unchanged")
def test_state_that_is_not_the_sessions_is_refused(subject: Subject) -> None:
    zeros = {f"{name}.{buffer}": tensor * 0 for name, tensor in WEIGHTS.items() for buffer in ("exp_avg", "exp_avg_sq")}
    step = {"step": "1"}

    def put(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> httpx.Response:
        return send(subject, "/state", tensor_file(tensors, metadata))

    less = {name: tensor for name, tensor in zeros.items() if name != "bias.exp_avg"}
    assert_refused(put(less, step), 422, "tensor-mismatch", missing=["bias.exp_avg"], unknown=[])
    more = {**zeros, "weight.momentum_buffer": WEIGHTS["weight"]}
    assert_refused(put(more, step), 422, "tensor-mismatch", missing=[], unknown=["weight.momentum_buffer"])
    stranger = {**zeros, "../../x.exp_avg": ONE}
    assert_refused(put(stranger, step), 422, "tensor-mismatch", missing=[], unknown=["../../x.exp_avg"])
    flat = {**zeros, "weight.exp_avg": torch.zeros(6)}
    assert_refused(put(flat, step), 422, "shape-mismatch", tensor="weight.exp_avg", expected=[2, 3], got=[6])
    nan = {**zeros, "bias.exp_avg_sq": torch.tensor([NAN, 0.0])}
    assert_refused(put(nan, step), 422, "nonfinite-params", tensors=["bias.exp_avg_sq"])
    for wrong in ({}, {"step": ""}, {"step": "-1"}, {"step": "1.0"}, {"step": str(2**63)}, {"step": "9" * 5000}):
        assert_refused(put(zeros, wrong), 422, "invalid-field", field="step")
    assert_refused(put(zeros, {**step, "optimizer": "sgd"}), 422, "invalid-field", field="optimizer")
    assert_refused(put(zeros, {**step, "loss": "1"}), 422, "invalid-field", field="loss")


def test_odd_names_are_only_names(http: httpx.Client) -> None:
    names = [
        "../../x",
        "/etc/passwd",
        "__proto__",
        "<script>alert(1)</script>",
        "a b",
        "naïve.ß",
        "🙂",
        "=1+1",
        '"',
        "\\",
    ]
    params = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    for subject in (
        Subject.create(http, "sgd", params=params, name="../../<script>", lr=1.0),
        Subject.create(http, "sgd", params=None, tensors=[{"name": name, "shape": [2]} for name in names], lr=1.0),
    ):
        grads = {name: -torch.ones(2) for name in names}
        before = subject.pull()
        assert [tensor["name"] for tensor in subject.info()["tensors"]] == names
        assert subject.push(grads, worker="<script>").status_code == 200
        assert_equal(subject.pull(), {name: tensor + 1 for name, tensor in before.items()})
        assert subject.pull(names="../../x").keys() == {"../../x"}
        as_json = http.get(f"{subject.path}/params", headers={"Accept": "application/json"}).json()["params"]
        assert list(as_json) == names
        assert subject.steps()[0]["worker"] == "<script>"
        http.delete(subject.path)


@pytest.mark.parametrize(
    "name", ["", "a\0b", "a\nb", "\x7f", "\x85", "\ud800", "x" * 513, LONG, "__metadata__"], ids=repr
)
def test_a_name_that_no_file_could_hold_is_refused(http: httpx.Client, name: str) -> None:
    body = {"optimizer": {"name": "sgd"}, "tensors": [{"name": name, "shape": [1]}]}
    reply = http.post("/v1/sessions", content=json.dumps(body), headers=JSON)
    assert_refused(reply, 422, "invalid-field", field="tensors.0.name")
    body = {"optimizer": {"name": "sgd"}, "params": {name: [1.0]}}
    reply = http.post("/v1/sessions", content=json.dumps(body), headers=JSON)
    assert_refused(reply, 422, "invalid-field", field="tensors.0.name")
    if name != "__metadata__":
        content = tensor_file({name: ONE}, {"session": '{"optimizer": {"name": "sgd"}}'})
        reply = http.post("/v1/sessions", content=content, headers=SAFETENSORS)
        assert_refused(reply, 422, "invalid-field", field="tensors.0.name")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/zip",
     "application/json, application/json", "x" * 10_000],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_other_kinds_of_body_are_refused_with_those_there_are(subject: Subject, content_type: str | None) -> None:
    headers = {"If-Match": '"1.0"'} | ({} if content_type is None else {"Content-Type": content_type})
    both, tensors = ["application/vnd.safetensors", "application/json"], ["application/vnd.safetensors"]
    for method, path, supported in (
        ("POST", f"{subject.path}/steps", both),
        ("PUT", f"{subject.path}/params", both),
        ("PUT", f"{subject.path}/state", tensors),
        ("PATCH", subject.path, ["application/json"]),
        ("POST", "/v1/sessions", both),
    ):
        reply = subject.http.request(method, path, content=b"a=1", headers=headers)
        assert_refused(reply, 415, "unsupported-media-type", supported=supported)


def test_metadata_of_the_safetensors_libraries_is_let_pass(subject: Subject) -> None:
    assert send(subject, "/steps", tensor_file(GRADS, {"format": "pt"})).status_code == 200


def test_a_header_padded_with_spaces_is_read(subject: Subject) -> None:
    header = json.dumps({"weight": entry([2, 3], 0, 24), "bias": entry([2], 24, 32)}).encode()
    assert send(subject, "/steps", raw_file(header + b"   ", bytes(32))).status_code == 200
