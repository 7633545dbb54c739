"""Pulls, waits, weights and state in and out, lists and pages."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
import torch
from api_subject import GRADS, NO_DECAY, SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, receipt_of
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from raw_safetensors import tensor_file

WIRE = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Values that a naive rounding gets wrong: ties, subnormals of F16, numbers near its largest.
EDGES = {
    "w": torch.tensor([1 + 2**-8, 1 + 2**-9, 1 + 3 * 2**-9, 2**-24, 2**-25, 3 * 2**-26, 65504.0, 1e-40, -0.0, 1 / 3]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("name", WIRE)
def test_weights_come_in_every_wire_dtype_rounded_as_torch_rounds(http: httpx.Client, name: str) -> None:
    subject = Subject.create(http, "sgd", params=EDGES, lr=1.0)
    assert_equal(subject.pull(dtype=name), {key: tensor.to(WIRE[name]) for key, tensor in EDGES.items()})
    zeros = {key: torch.zeros_like(tensor) for key, tensor in EDGES.items()}
    pushed = load(subject.push(zeros, pull=name).content)
    assert_equal(pushed, {key: (tensor - 0.0).to(WIRE[name]) for key, tensor in EDGES.items()})
    as_json = http.get(f"{subject.path}/params", params={"dtype": name}, headers={"Accept": "application/json"}).json()
    assert as_json["params"] == {key: tensor.to(WIRE[name]).tolist() for key, tensor in EDGES.items()}


@pytest.mark.parametrize("dtype", WIRE.values(), ids=WIRE)
def test_gradients_are_taken_in_every_wire_dtype_and_order(http: httpx.Client, dtype: torch.dtype) -> None:
    subject = Subject.create(http, "sgd", params=EDGES, lr=1.0)
    grads = {name: torch.full_like(EDGES[name], 0.5, dtype=dtype) for name in ("scalar", "empty", "w")}
    subject.push(grads)
    assert_equal(subject.pull(), {name: tensor - 0.5 for name, tensor in EDGES.items()})


def test_a_file_of_the_safetensors_library_is_a_push(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=WEIGHTS, lr=1.0)
    headers = {**SAFETENSORS, "If-Match": '"0"'}
    assert http.post(f"{subject.path}/steps", content=save(GRADS), headers=headers).status_code == 200
    assert_equal(subject.pull(), {name: tensor - GRADS[name] for name, tensor in WEIGHTS.items()})


def test_no_weights_are_sent_when_none_are_wanted(subject: Subject) -> None:
    assert load(subject.push(pull="none").content) == {}
    reply = subject.http.post(
        f"{subject.path}/steps?pull=none",
        json={"grads": {name: grad.tolist() for name, grad in GRADS.items()}},
        headers={"Idempotency-Key": "k"},
    )
    assert reply.json().keys() == {"receipt"}
    assert reply.headers["etag"] == '"3.0"'


def test_some_tensors_are_the_same_as_among_all(subject: Subject) -> None:
    everything = subject.pull()
    assert_equal(subject.pull(names="bias"), {"bias": everything["bias"]})
    assert_equal(subject.pull(names=["weight", "bias", "weight"]), everything)


def test_json_and_safetensors_are_the_same_numbers(subject: Subject) -> None:
    reply = subject.http.get(f"{subject.path}/params", headers={"Accept": "application/json"})
    assert reply.json() == {"params": {k: t.tolist() for k, t in subject.pull().items()}, "step": 1, "etag": "1.0"}
    some = subject.http.get(f"{subject.path}/params?names=bias", headers={"Accept": "application/json"}).json()
    assert some["params"] == {"bias": subject.pull()["bias"].tolist()}


def test_a_pull_says_of_which_version_it_is(subject: Subject, tmp_path: Any) -> None:
    reply = subject.http.get(f"{subject.path}/params")
    file = tmp_path / "pulled.safetensors"
    file.write_bytes(reply.content)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"step": "1", "etag": "1.0"}
    assert_equal(load_file(file), subject.pull())
    assert reply.headers["etag"] == '"1.0"'


def test_nothing_is_sent_again_while_nothing_has_changed(subject: Subject) -> None:
    def pull(known: str) -> httpx.Response:
        return subject.http.get(f"{subject.path}/params", headers={"If-None-Match": known})

    for known in ('"1.0"', '"1"', '"0.0", "1.0"'):
        reply = pull(known)
        assert (reply.status_code, reply.headers["etag"], reply.content) == (304, '"1.0"', b"")
    assert pull('"0.0"').status_code == 200
    subject.push()
    assert pull('"1.0"').headers["etag"] == '"2.0"'


def test_a_wait_ends_with_the_next_step_or_with_304(subject: Subject) -> None:
    def wait(seconds: int) -> httpx.Response:
        headers = {"If-None-Match": '"1.0"', "Prefer": f"respond-async, wait={seconds}"}
        return subject.http.get(f"{subject.path}/params", headers=headers)

    assert wait(1).status_code == 304
    assert wait(0).status_code == 304
    replies: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: replies.append(wait(25)))
    waiting.start()
    subject.push()
    waiting.join()
    assert [(reply.status_code, reply.headers["etag"]) for reply in replies] == [(200, '"2.0"')]


def test_a_wait_on_a_session_that_is_deleted_ends(subject: Subject) -> None:
    headers = {"If-None-Match": '"1.0"', "Prefer": "wait=25"}
    replies: list[httpx.Response] = []
    waiting = threading.Thread(
        target=lambda: replies.append(subject.http.get(f"{subject.path}/params", headers=headers))
    )
    waiting.start()
    subject.http.delete(subject.path)
    waiting.join()
    assert_refused(replies[0], 404, "session-not-found")


def test_weights_that_are_put_leave_state_and_history(subject: Subject) -> None:
    before = subject.stands()
    for body in (
        {"content": tensor_file(WEIGHTS), "headers": SAFETENSORS},
        {"json": {"params": {k: t.tolist() for k, t in WEIGHTS.items()}}},
    ):
        generation = int(subject.etag().strip('"').partition(".")[2]) + 1
        reply = subject.http.put(f"{subject.path}/params", **body)
        assert reply.json() == {"step": 1, "etag": f"1.{generation}"}
        assert reply.headers["etag"] == f'"1.{generation}"'
        assert_equal(subject.pull(), WEIGHTS)
    after = subject.stands()
    assert load(after["state"]).keys() == load(before["state"]).keys()
    assert_equal(load(after["state"]), load(before["state"]))
    assert after["steps"] == before["steps"]
    assert [event["kind"] for event in after["events"]] == ["created", "params_put", "params_put"]


def test_state_put_into_a_twin_goes_on_with_the_same_bits(http: httpx.Client) -> None:
    for optimizer, settings in (
        ("adamw", {"amsgrad": True}),
        ("sgd", {"momentum": 0.9}),
        ("lion", {}),
        ("rmsprop", {"centered": True}),
    ):
        ours = Subject.create(http, optimizer, groups=[NO_DECAY], lr=0.1, **settings)
        for _ in range(3):
            ours.push()
        state = http.get(f"{ours.path}/state")
        with_step = json.loads(state.content[8 : 8 + int.from_bytes(state.content[:8], "little")])["__metadata__"]
        assert with_step == {"optimizer": optimizer, "step": "3", "etag": "3.0"}
        twin = Subject.create(http, optimizer, params=ours.pull(), groups=[NO_DECAY], lr=0.1, **settings)
        put = http.put(f"{twin.path}/state", content=state.content, headers={**SAFETENSORS, "If-Match": '"0.0"'})
        assert put.json() == {"step": 0, "etag": "0.1"}
        assert_equal(load(http.get(f"{twin.path}/state").content), load(state.content))
        theirs = receipt_of(twin.push())
        assert theirs["update_norm"] == receipt_of(ours.push())["update_norm"]
        assert_equal(twin.pull(), ours.pull())


def test_a_buffer_that_has_not_started_is_absent(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", lr=0.1, momentum=0.9)
    assert load(http.get(f"{subject.path}/state").content) == {}
    subject.push()
    assert load(http.get(f"{subject.path}/state").content).keys() == {"weight.momentum_buffer", "bias.momentum_buffer"}
    put = http.put(f"{subject.path}/state", content=tensor_file({}, {"step": "0"}), headers=SAFETENSORS)
    assert put.status_code == 200
    assert load(http.get(f"{subject.path}/state").content) == {}


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize("how", ["patched", "pushed"])
def test_momentum_that_begins_in_a_run_is_exported_and_comes_back(http: httpx.Client, optimizer: str, how: str) -> None:
    subject = Subject.create(http, optimizer, lr=0.1)
    subject.push()
    before = load(http.get(f"{subject.path}/state").content)
    assert not any(name.endswith("momentum_buffer") for name in before)
    if how == "patched":
        assert http.patch(subject.path, json={"optimizer": {"momentum": 0.9}}).status_code == 200
        assert load(http.get(f"{subject.path}/state").content).keys() == before.keys()
        subject.push()
        assert http.patch(subject.path, json={"optimizer": {"momentum": 0}}).status_code == 200
    else:
        subject.push(hyperparameters='{"momentum": 0.9}')
    exported = http.get(f"{subject.path}/state").content
    assert {"weight.momentum_buffer", "bias.momentum_buffer"} <= load(exported).keys()
    twin = Subject.create(http, optimizer, params=subject.pull(), lr=0.1)
    assert http.put(f"{twin.path}/state", content=exported, headers=SAFETENSORS).status_code == 200
    assert_equal(load(http.get(f"{twin.path}/state").content), load(exported))
    for session in (subject, twin):
        session.push(hyperparameters='{"momentum": 0.9}')
    assert_equal(twin.pull(), subject.pull())


def test_a_mean_of_squares_cannot_be_negative(http: httpx.Client) -> None:
    subject = Subject.create(http, "adamw")
    subject.push()
    state = load(http.get(f"{subject.path}/state").content)
    state["bias.exp_avg_sq"] = -state["bias.exp_avg_sq"]
    before = subject.stands()
    put = http.put(f"{subject.path}/state", content=tensor_file(state, {"step": "1"}), headers=SAFETENSORS)
    assert_refused(put, 422, "invalid-field", field="bias.exp_avg_sq")
    assert subject.stands() == before


def test_a_deleted_session_is_gone(http: httpx.Client) -> None:
    subject = Subject.create(http)
    subject.push()
    reply = http.delete(subject.path)
    assert (reply.status_code, reply.content) == (204, b"")
    for method, below in (
        ("GET", ""), ("DELETE", ""), ("GET", "/params"), ("GET", "/state"), ("GET", "/steps"), ("GET", "/steps/1"),
        ("GET", "/events"),
    ):  # fmt: skip
        assert_refused(http.request(method, subject.path + below), 404, "session-not-found")
    assert_refused(subject.push(if_match='"1"'), 404, "session-not-found")


def test_the_list_is_paged_in_order_of_creation(http: httpx.Client) -> None:
    made = [Subject.create(http, name=f"paged {i}") for i in range(5)]
    ids = [subject.path.rpartition("/")[2] for subject in made]
    made[0].push()
    listed: list[dict[str, Any]] = []
    after: str | None = ids[0][:-8] + "0" * 8
    while after is not None:
        page = http.get("/v1/sessions", params={"limit": 2, "after": after}).json()
        assert len(page["sessions"]) <= 2
        listed += page["sessions"]
        after = page["next"]
    ours = [row for row in listed if row["id"] in ids]
    assert [row["id"] for row in ours] == ids == sorted(ids)
    assert len({row["id"] for row in listed}) == len(listed)
    assert [row["step"] for row in ours] == [1, 0, 0, 0, 0]
    assert "tensors" not in ours[0]
    for subject in made:
        http.delete(subject.path)


def test_history_is_paged_in_order(subject: Subject) -> None:
    for i in range(6):
        subject.push(loss=str(i))
    page = subject.http.get(f"{subject.path}/steps?limit=3").json()
    assert ([row["step"] for row in page["steps"]], page["next"]) == ([1, 2, 3], 3)
    page = subject.http.get(f"{subject.path}/steps?limit=4&after=3").json()
    assert ([row["step"] for row in page["steps"]], page["next"]) == ([4, 5, 6, 7], None)
    assert subject.steps(after=2**63 - 1) == []
    first = subject.http.get(f"{subject.path}/events?limit=1").json()
    assert ([event["kind"] for event in first["events"]], first["next"]) == (["created"], None)
