"""What a session starts as."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_subject import SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, receipt_of
from torch.nn import init

from raw_safetensors import tensor_file

INITIALISERS: list[tuple[str, dict[str, Any]]] = [
    ("zeros", {}),
    ("constant", {"val": 0.25}),
    ("normal", {}),
    ("normal", {"mean": 1.0, "std": 0.5}),
    ("uniform", {"a": -1.0, "b": 2.0}),
    ("trunc_normal", {"std": 0.5}),
    ("xavier_uniform", {"gain": 2.0}),
    ("xavier_normal", {}),
    ("kaiming_uniform", {"a": 5**0.5}),
    ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("orthogonal", {"gain": 0.5}),
]


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_initialisers_draw_what_torch_draws_in_the_order_given(http: httpx.Client, dtype: str) -> None:
    described: list[dict[str, Any]] = [
        {"name": f"t{i}", "shape": [4 + i, 3], "dtype": dtype, "init": {"name": name, **arguments}}
        for i, (name, arguments) in enumerate(INITIALISERS)
    ]
    # Groups change where tensors lie, and must not change what they draw.
    groups = [{"match": ["t7", "t3"], "lr": 0.5}]
    subject = Subject.create(http, "sgd", params=None, tensors=described, groups=groups, seed=1234)
    torch.manual_seed(1234)
    expected = {}
    for i, (name, arguments) in enumerate(INITIALISERS):
        tensor = torch.empty(4 + i, 3, dtype={"F32": torch.float32, "F64": torch.float64}[dtype])
        expected[f"t{i}"] = getattr(init, f"{name}_")(tensor, **arguments)
    assert_equal(subject.pull(), expected)
    assert [t["name"] for t in subject.info()["tensors"]][:2] == ["t3", "t7"]


def test_a_tensor_is_in_the_group_it_names_else_in_the_first_that_matches(http: httpx.Client) -> None:
    names = ["a.bias", "b.bias", "a.weight", "norm.weight", "head[0]", "HEAD"]
    tensors: list[dict[str, Any]] = [{"name": name, "shape": [1]} for name in names]
    tensors[2]["group"] = "biases"
    tensors[3]["group"] = "default"
    groups = [
        {"name": "biases", "match": ["*.bias"], "lr": 1.0},
        {"match": ["a.*", "norm*", "*"], "lr": 2.0},
    ]
    info = Subject.create(http, "sgd", params=None, tensors=tensors, groups=groups).info()
    member = {tensor["name"]: tensor["group"] for tensor in info["tensors"]}
    assert member == {
        "a.bias": "biases", "b.bias": "biases", "a.weight": "biases", "norm.weight": "default", "head[0]": "group1",
        "HEAD": "group1",
    }  # fmt: skip
    assert [tensor["group"] for tensor in info["tensors"]] == ["biases"] * 3 + ["group1"] * 2 + ["default"]
    assert {name: hyper["lr"] for name, hyper in info["hyperparameters"].items()} == {
        "biases": 1.0, "group1": 2.0, "default": 0.001,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.bias", {"a.bias"}),
        ("[ab].*", {"a.bias", "b.w"}),
        ("?.w", {"b.w"}),
        ("[!b]*", {"a.bias", "A.BIAS"}),
        ("a*b*s", {"a.bias"}),
        ("*" * 50, {"a.bias", "b.w", "A.BIAS"}),
        ("[", set()),
        ("[z-a]*", set()),
        ("a.bias\n", set()),
    ],
)
def test_patterns_are_the_shells(http: httpx.Client, pattern: str, matched: set[str]) -> None:
    tensors = [{"name": name, "shape": [1]} for name in ("a.bias", "b.w", "A.BIAS")] + [
        {"name": "keeper", "shape": [1], "group": "g"}
    ]
    groups = [{"name": "g", "match": [pattern, "*a*b*c*d*e*"]}]
    info = Subject.create(http, "sgd", params=None, tensors=tensors, groups=groups).info()
    assert {t["name"] for t in info["tensors"] if t["group"] == "g"} == matched | {"keeper"}


def test_shapes_with_zeros_and_none_go_all_the_way(http: httpx.Client) -> None:
    shapes = {"scalar": [], "none": [0], "rows": [0, 3], "columns": [3, 0], "one": [1, 1]}
    tensors = [{"name": name, "shape": shape} for name, shape in shapes.items()]
    subject = Subject.create(http, "sgd", params=None, tensors=tensors, lr=1.0)
    assert {name: list(tensor.shape) for name, tensor in subject.pull().items()} == shapes
    grads = {"scalar": 2.0, "none": [], "rows": [], "columns": [[], [], []], "one": [[3]]}
    reply = http.post(f"{subject.path}/steps", json={"grads": grads}, headers={"Idempotency-Key": "k"})
    assert receipt_of(reply)["grad_norm"] == pytest.approx(13**0.5)
    assert (reply.json()["params"]["scalar"], reply.json()["params"]["one"]) == (-2.0, [[-3.0]])
    assert subject.push(subject.pull()).status_code == 200


def test_a_shape_that_json_cannot_say_travels_as_safetensors(http: httpx.Client) -> None:
    tensors = [{"name": "w", "shape": [2**62, 0]}]
    subject = Subject.create(http, "sgd", params=None, tensors=tensors, lr=1.0)
    assert subject.push(subject.pull()).status_code == 200
    reply = http.get(f"{subject.path}/params", headers={"Accept": "application/json"})
    assert_refused(reply, 406, "not-acceptable")


def test_a_push_whose_reply_json_cannot_carry_is_refused_before_it_steps(http: httpx.Client) -> None:
    params = {"w": torch.zeros(1_000_001)}
    subject = Subject.create(http, "sgd", params=params, lr=1.0)
    headers = {**SAFETENSORS, "If-Match": '"0"', "Accept": "application/json"}
    path, content = f"{subject.path}/steps", tensor_file(params)
    assert_refused(http.post(path, content=content, headers=headers), 406, "not-acceptable")
    assert subject.etag() == '"0.0"'
    assert http.post(f"{path}?pull=none", content=content, headers=headers).json()["receipt"]["step"] == 1


def test_a_session_of_nothing_steps(http: httpx.Client) -> None:
    subject = Subject.create(http, params=None, tensors=[{"name": "w", "shape": [0]}])
    receipt = receipt_of(subject.push({"w": torch.zeros(0)}))
    assert (receipt["step"], receipt["grad_norm"], receipt["param_norm"]) == (1, 0, 0)


def test_inline_weights_say_names_and_shapes(http: httpx.Client) -> None:
    params = {"w": [[1, 2.5], [3, 4]], "b": 0.5, "empty": []}
    reply = http.post("/v1/sessions", json={"optimizer": {"name": "sgd"}, "params": params})
    subject = Subject(http, reply.headers["Location"])
    expected = {"w": torch.tensor([[1, 2.5], [3, 4]]), "b": torch.tensor(0.5), "empty": torch.zeros(0)}
    assert_equal(subject.pull(), expected)
    assert {tensor["dtype"] for tensor in reply.json()["tensors"]} == {"F32"}


def test_a_float64_session_keeps_every_bit(http: httpx.Client) -> None:
    params = {"w": torch.tensor([1 / 3, 1e300, 5e-324], dtype=torch.float64)}
    subject = Subject.create(http, "sgd", params=params, lr=1.0)
    assert_equal(subject.pull(), params)
    subject.push({"w": torch.tensor([1e-17, 0, 0], dtype=torch.float64)})
    assert_equal(subject.pull(), {"w": params["w"] - torch.tensor([1e-17, 0, 0], dtype=torch.float64)})
    assert http.get(f"{subject.path}/params", headers={"Accept": "application/json"}).json()["params"]["w"][1] == 1e300


def test_a_description_that_is_given_back_creates_the_same_session(http: httpx.Client) -> None:
    said = {
        "name": "again", "optimizer": {"name": "adamw", "lr": 0.5},
        "tensors": [{"name": "w", "shape": [3, 2], "init": {"name": "normal"}}, {"name": "b", "shape": [3]}],
        "groups": [{"name": "g", "match": ["b"], "lr": 0.25}], "seed": 7, "nonfinite": "zero",
    }  # fmt: skip
    first = http.post("/v1/sessions", json=said).json()
    given = {name: first[name] for name in
             ("name", "optimizer", "tensors", "groups", "seed", "nonfinite", "storage", "durability")}  # fmt: skip
    # Layout order is not the order of initialisation where groups differ, so the one tensor that draws decides nothing.
    second = http.post("/v1/sessions", json=given).json()
    differ = ("id", "created_at")
    assert {k: v for k, v in second.items() if k not in differ} == {k: v for k, v in first.items() if k not in differ}
    ours, theirs = (Subject(http, f"/v1/sessions/{session['id']}").pull() for session in (first, second))
    assert_equal(ours, theirs)


@pytest.mark.usefixtures("on_host")
def test_bytes_are_weights_gradients_and_state(http: httpx.Client) -> None:
    for optimizer, buffers in (("sgd", 0), ("lion", 1), ("adamw", 2)):
        info = Subject.create(http, optimizer, params=WEIGHTS).info()
        assert (info["parameters"], info["bytes"]) == (8, 8 * 4 * (2 + buffers))


def test_a_refused_creation_leaves_nothing_behind(http: httpx.Client) -> None:
    before = http.get("/readyz").json()["sessions"]
    bad = tensor_file({"w": torch.tensor([float("nan")])}, {"session": '{"optimizer": {"name": "sgd"}}'})
    assert http.post("/v1/sessions", content=bad, headers=SAFETENSORS).status_code == 422
    assert http.get("/readyz").json()["sessions"] == before
