"""A push in parts: the same step as the push of the same gradients whole, whatever comes in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from api_parts import GROUPS, PARAMS, complete, parts, send
from api_subject import (
    SAFETENSORS,
    Subject,
    Tensors,
    assert_equal,
    assert_refused,
    lists,
    receipt_of,
    wait_until_in_flight,
)
from raw_socket import connected, head, push_head
from safetensors.torch import load

from raw_safetensors import tensor_file

GRADS = {name: torch.full_like(tensor, 0.5) for name, tensor in PARAMS.items()}
ALL = list(PARAMS)


@pytest.fixture
def subject(http: httpx.Client) -> Subject:
    return Subject.create(http, "sgd", params=PARAMS, groups=GROUPS, lr=1.0)


def gradients(steps: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(p.shape, generator=generator) for name, p in PARAMS.items()} for _ in range(steps)]


def shown(subject: Subject) -> dict[str, Any]:
    """What can be seen of a session but for its id and its times."""
    stands = subject.stands()
    rows = [{name: row[name] for name in row.keys() - {"session", "committed_at"}} for row in stands["steps"]]
    return {
        "params": stands["params"],
        "state": stands["state"],
        "steps": rows,
        "skipped": stands["session"]["skipped"],
    }


NAN = [{**grads, "c.weight": grads["c.weight"] / 0} for grads in gradients(2)]

SESSIONS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.1, "clip": {"max_norm": 0.5}, "ema": {"decay": 0.5}},
    "lamb": {"optimizer": "lamb", "centralize": True, "maximize": True},
    "shampoo": {"optimizer": "shampoo", "clip": {"agc": 0.01}},
    "schedule": {"optimizer": "sgd", "momentum": 0.9, "schedule": {"name": "exponential", "gamma": 0.5}},
    "grad_dtype": {"optimizer": "adam", "grad_dtype": "BF16"},
    "state_dtype": {"optimizer": "adam", "state_dtype": "8bit"},
    "accumulate": {"optimizer": "adamw", "accumulate": {"steps": 2}},
    "loss_scale": {"optimizer": "adamw", "loss_scale": {"init_scale": 4.0, "growth_interval": 1}},
    "both": {"optimizer": "sgd", "lr": 0.1, "accumulate": {"steps": 2}, "loss_scale": {"init_scale": 4.0}},
}


@pytest.mark.parametrize("session", SESSIONS)
def test_a_push_in_parts_is_to_the_bit_the_push_of_the_same_gradients_whole(http: httpx.Client, session: str) -> None:
    whole, parted = (Subject.create(http, params=PARAMS, groups=GROUPS, **SESSIONS[session]) for _ in range(2))
    for step, grads in enumerate(gradients(5)):
        facts = {"loss": step / 2, "num_examples": step, "hyperparameters": {"lr": 0.25 + step}}
        said = {name: str(value).replace("'", '"') for name, value in facts.items()}
        theirs = whole.push(grads, key=str(step), **said)
        for part in parts(grads, "d", "ef", "b"):
            assert receipt_of(send(parted, part, f"step-{step}"))["outcome"] == "buffered"
        ours = complete(parted, *parts(grads, "ac"), f"step-{step}", key=str(step), **facts)
        assert receipt_of(ours) == {**receipt_of(theirs), "session": receipt_of(ours)["session"]}
        assert ours.headers["etag"] == theirs.headers["etag"]
    assert shown(parted) == shown(whole)


@pytest.mark.parametrize("nonfinite", ["reject", "skip", "zero"])
def test_what_is_not_finite_in_a_part_is_judged_with_the_whole(http: httpx.Client, nonfinite: str) -> None:
    whole, parted = (Subject.create(http, "adamw", params=PARAMS, groups=GROUPS, nonfinite=nonfinite) for _ in range(2))
    for step, grads in enumerate([*gradients(1), *NAN]):
        theirs = whole.push(grads, key=str(step))
        assert receipt_of(send(parted, *parts(grads, "abc"), str(step)))["outcome"] == "buffered"
        ours = complete(parted, *parts(grads, "def"), str(step), key=str(step))
        assert ours.status_code == theirs.status_code
        if ours.is_error:
            assert ours.json() == theirs.json()
    assert shown(parted) == shown(whole)


def test_parts_come_in_any_order_and_dtype_and_kind(subject: Subject) -> None:
    wire = {**GRADS, "c.weight": GRADS["c.weight"].half(), "b.bias": GRADS["b.bias"].bfloat16()}
    wire["f.weight"] = wire["f.weight"].double()
    send(subject, dict(reversed(parts(wire, "cf")[0].items())))
    send(subject, *parts(GRADS, "d"), kind="json")
    reply = complete(subject, dict(reversed(parts(wire, "abe")[0].items())), if_match=subject.etag())
    assert receipt_of(reply)["step"] == 1
    assert_equal(subject.pull(), {name: PARAMS[name] - 0.5 for name in PARAMS})


def test_a_tensor_that_comes_again_takes_the_place_of_what_came(subject: Subject) -> None:
    twice = {name: 2 * grad for name, grad in GRADS.items()}
    send(subject, *parts(GRADS, "abcd"))
    send(subject, *parts(twice, "bd"))
    complete(subject, *parts(twice, "aef"))
    expected = {name: PARAMS[name] - (0.5 if name[0] == "c" else 1.0) for name in PARAMS}
    assert_equal(subject.pull(), expected)


def test_a_part_is_answered_with_a_receipt_alone_and_changes_nothing(subject: Subject) -> None:
    subject.push(GRADS)
    before = subject.stands()
    reply = send(subject, *parts(GRADS, "ab"))
    assert reply.headers["etag"] == before["session"]["etag"].join('""')
    assert len(reply.content) < 1000
    receipt = receipt_of(reply)
    assert {
        name: receipt[name] for name in ("outcome", "step", "base_step", "lr", "loss", "grad_norm", "duplicate")
    } == {
        "outcome": "buffered",
        "step": 1,
        "base_step": 1,
        "lr": 1.0,
        "loss": None,
        "grad_norm": None,
        "duplicate": False,
    }
    assert receipt_of(send(subject, *parts(GRADS, "cd"), kind="json")) == receipt
    assert subject.stands() == before


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_the_last_part_may_hold_no_gradient(subject: Subject, kind: str) -> None:
    send(subject, GRADS)
    receipt = receipt_of(complete(subject, kind=kind, loss=0.5))
    assert (receipt["outcome"], receipt["step"], receipt["loss"]) == ("applied", 1, 0.5)
    assert_equal(subject.pull(), {name: PARAMS[name] - 0.5 for name in PARAMS})


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_the_last_part_may_be_all_of_them(subject: Subject, kind: str) -> None:
    assert receipt_of(complete(subject, GRADS, kind=kind))["step"] == 1
    assert_equal(subject.pull(), {name: PARAMS[name] - 0.5 for name in PARAMS})


def test_the_last_part_pulls_as_a_whole_push_does(subject: Subject) -> None:
    send(subject, GRADS)
    assert len(complete(subject, query={"pull": "none"}).content) < 1000
    send(subject, GRADS)
    assert_equal(load(complete(subject, query={"pull": "bf16"}).content), subject.pull(dtype="bf16"))


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_push_of_which_some_is_missing_says_what_and_changes_nothing(subject: Subject, kind: str) -> None:
    before = subject.stands()
    send(subject, *parts(GRADS, "ac"))
    reply = complete(subject, *parts(GRADS, "e"), kind=kind, key="k")
    missing = ["b.bias", "d.weight", "f.weight"]
    assert_refused(reply, 409, "contribution-incomplete", contribution="c", missing=missing)
    assert "push all gradients whole" in reply.json()["detail"]
    assert subject.stands() == before
    send(subject, *parts(GRADS, "bd"))
    assert receipt_of(complete(subject, *parts(GRADS, "ef"), kind=kind, key="k"))["step"] == 1


def test_of_many_that_are_missing_ten_are_named(http: httpx.Client) -> None:
    subject = Subject.create(http, params={f"t{i:02}": torch.zeros(1) for i in range(30)})
    reply = complete(subject, {"t00": torch.zeros(1)}, contribution="!~")
    assert_refused(reply, 409, "contribution-incomplete", contribution="!~", missing=[f"t{i:02}" for i in range(1, 11)])


def test_the_retry_of_a_completed_push_returns_its_receipt(subject: Subject) -> None:
    send(subject, *parts(GRADS, "abcd"))
    first = receipt_of(complete(subject, *parts(GRADS, "ef"), key="k", loss=1.0))
    for _ in range(2):  # what went before is forgotten, and is not asked for
        again = receipt_of(complete(subject, *parts(GRADS, "ef"), key="k", loss=1.0))
        assert again == {**first, "duplicate": True}
    other = {"e.empty": GRADS["e.empty"], "f.weight": 2 * GRADS["f.weight"]}
    assert_refused(complete(subject, other, key="k", loss=1.0), 422, "key-reused")
    assert_refused(complete(subject, *parts(GRADS, "ef"), key="k", loss=2.0), 422, "key-reused")
    assert [row["step"] for row in subject.steps()] == [1]


def test_parts_that_were_stepped_with_are_not_stepped_with_again(http: httpx.Client) -> None:
    for policy in ({}, {"accumulate": {"steps": 3}}, {"nonfinite": "skip"}):
        subject = Subject.create(http, "sgd", params=PARAMS, **policy)  # type: ignore[arg-type]
        nonfinite = {name: grad / 0 for name, grad in GRADS.items()} if "nonfinite" in policy else GRADS
        send(subject, nonfinite)
        assert complete(subject).status_code == 200
        assert_refused(complete(subject), 409, "contribution-incomplete", missing=ALL)


def whole_push(subject: Subject) -> None:
    assert subject.push(GRADS, key="other").status_code == 200


def whole_push_that_is_refused(subject: Subject) -> None:
    assert subject.push({name: grad / 0 for name, grad in GRADS.items()}, key="other").status_code == 422


def put_params(subject: Subject) -> None:
    assert subject.http.put(f"{subject.path}/params", json={"params": lists(PARAMS)}).status_code == 200


def put_params_that_are_refused(subject: Subject) -> None:
    content = tensor_file({name: tensor / 0 for name, tensor in PARAMS.items()})
    assert subject.http.put(f"{subject.path}/params", content=content, headers=SAFETENSORS).status_code == 422


def put_state(subject: Subject) -> None:
    content = subject.http.get(f"{subject.path}/state").content
    assert subject.http.put(f"{subject.path}/state", content=content, headers=SAFETENSORS).status_code == 200


def another_optimizer(subject: Subject) -> None:
    assert subject.http.put(f"{subject.path}/optimizer", json={"name": "adam"}).status_code == 200


def another_contribution(subject: Subject) -> None:
    assert send(subject, *parts(GRADS, "a"), "other").status_code == 200


def another_contribution_completed(subject: Subject) -> None:
    assert complete(subject, GRADS, "other").status_code == 200


@pytest.mark.parametrize("accumulated", [False, True], ids=["plain", "accumulated"])
@pytest.mark.parametrize(
    "call",
    [
        whole_push,
        whole_push_that_is_refused,
        put_params,
        put_params_that_are_refused,
        put_state,
        another_optimizer,
        another_contribution,
        another_contribution_completed,
    ],
)
def test_what_needs_the_place_of_the_parts_or_moves_the_session_has_them_forgotten(
    http: httpx.Client, call: Callable[[Subject], None], accumulated: bool
) -> None:
    accumulate = {"accumulate": {"steps": 9}} if accumulated else {}
    subject = Subject.create(http, "adamw", params=PARAMS, **accumulate)  # type: ignore[arg-type]
    subject.push(GRADS)
    send(subject, *parts(GRADS, "abcd"))
    call(subject)
    before = subject.stands()
    assert_refused(complete(subject, *parts(GRADS, "ef")), 409, "contribution-incomplete", missing=ALL[:4])
    assert subject.stands() == before
    assert subject.push(GRADS).status_code == 200


def test_a_whole_push_that_breaks_off_has_the_parts_forgotten(server_url: str, subject: Subject) -> None:
    send(subject, *parts(GRADS, "abcd"))
    content = tensor_file(GRADS)
    with connected(server_url) as connection:
        connection.sendall(push_head(subject.path, len(content), idempotency_key="k") + content[:-20])
        wait_until_in_flight(subject, "k")
    assert_refused(complete(subject, *parts(GRADS, "ef")), 409, "contribution-incomplete", missing=ALL[:4])


def test_what_leaves_the_session_alone_leaves_the_parts(subject: Subject) -> None:
    send(subject, *parts(GRADS, "abcd"))
    subject.stands()
    subject.pull(dtype="bf16")
    assert subject.http.patch(subject.path, json={"optimizer": {"lr": 2.0}}).status_code == 200
    for stale in (
        subject.push(GRADS, if_match='"7"'),
        send(subject, GRADS, "other", if_match='"7"'),
        complete(subject, GRADS, "other", if_match='"7"'),
        subject.http.put(f"{subject.path}/params", json={"params": lists(PARAMS)}, headers={"If-Match": '"7"'}),
    ):
        assert_refused(stale, 412, "stale-step")
    assert receipt_of(complete(subject, *parts(GRADS, "ef")))["lr"] == 2.0
    assert_equal(subject.pull(), {name: PARAMS[name] - 1.0 for name in PARAMS})


def test_a_refused_completion_leaves_the_parts(subject: Subject) -> None:
    nonfinite = {name: grad / 0 for name, grad in GRADS.items()}
    send(subject, *parts(GRADS, "abcd"))
    before = subject.stands()
    refused = complete(subject, *parts(GRADS, "ef"), key="k", hyperparameters={"lr": -1})
    assert_refused(refused, 422, "invalid-hyperparameter")
    refused = complete(subject, *parts(nonfinite, "ef"), key="k")
    assert_refused(refused, 422, "nonfinite-gradients", tensors=["f.weight"])
    assert subject.stands() == before
    assert receipt_of(complete(subject, *parts(GRADS, "ef"), key="k"))["step"] == 1
    assert_equal(subject.pull(), {name: PARAMS[name] - 0.5 for name in PARAMS})


def test_a_version_that_is_stale_is_said_before_what_is_missing(subject: Subject) -> None:
    send(subject, *parts(GRADS, "abcd"), if_match='"0.0"')
    subject.push(GRADS)
    assert_refused(send(subject, *parts(GRADS, "ef"), if_match='"0.0"'), 412, "stale-step", etag="1.0")
    assert_refused(complete(subject, *parts(GRADS, "ef"), if_match='"0.0"'), 412, "stale-step", etag="1.0")
    assert_refused(complete(subject, *parts(GRADS, "ef"), if_match='"1.0"'), 409, "contribution-incomplete")


def test_the_same_name_may_serve_for_step_after_step(subject: Subject) -> None:
    for step in range(3):
        send(subject, *parts(GRADS, "abcd"))
        assert receipt_of(complete(subject, *parts(GRADS, "ef")))["step"] == step + 1
    assert_equal(subject.pull(), {name: PARAMS[name] - 1.5 for name in PARAMS})


def test_new_values_of_buffers_come_with_the_last_part(http: httpx.Client) -> None:
    buffers = {"mean": torch.tensor([1.0, 2.0]), "var": torch.tensor([[3.0]])}
    said: dict[str, Any] = {"params": {**PARAMS, **buffers}, "buffers": ["mean", "var"], "lr": 1.0}
    for kind in ("safetensors", "json"):
        subject = Subject.create(http, "sgd", **said)
        send(subject, *parts(GRADS, "abcd"), kind=kind)
        fresh = {name: value + 1 for name, value in buffers.items()}
        assert receipt_of(complete(subject, *parts(GRADS, "ef"), buffers=fresh, kind=kind))["step"] == 1
        assert_equal(subject.pull(), {**{name: PARAMS[name] - 0.5 for name in PARAMS}, **fresh})
        send(subject, GRADS, kind=kind)
        assert receipt_of(complete(subject, kind=kind))["step"] == 2  # or stay as they are
        assert_equal(subject.pull(), {**{name: PARAMS[name] - 1.0 for name in PARAMS}, **fresh})


def test_parts_of_many_connections_meet(http: httpx.Client) -> None:
    params = {f"t{i:02}": torch.full((i, 3), float(i)) for i in range(20)}
    subject = Subject.create(http, "sgd", params=params, lr=1.0)
    for step in range(1, 4):
        with ThreadPoolExecutor(8) as pool:
            replies = pool.map(lambda name: send(subject, {name: params[name]}), params)
            assert {receipt_of(reply)["outcome"] for reply in replies} == {"buffered"}
        assert receipt_of(complete(subject))["step"] == step
    assert_equal(subject.pull(), {name: -2 * tensor for name, tensor in params.items()})


LARGE: Tensors = {"u": torch.arange(3_000_000.0), "v": torch.ones(1000, 700), "w": torch.ones(8)}


def test_of_a_part_that_breaks_off_nothing_has_come_and_the_others_stay(server_url: str, http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=LARGE, lr=1.0)
    send(subject, {"u": LARGE["u"], "v": LARGE["v"]})
    before = subject.stands()
    content = tensor_file({"u": torch.zeros_like(LARGE["u"])})
    with connected(server_url) as connection:
        headers = head(
            "POST", f"{subject.path}/steps?contribution=c", len(content), content_type=SAFETENSORS["Content-Type"]
        )
        # More than the kernel holds for the server: it has begun to take the part when all of this is sent.
        connection.sendall(headers + content[:-1000])
    # Answered when the turn is free again.
    reply = complete(subject, {"w": LARGE["w"]}, key="k")
    assert_refused(reply, 409, "contribution-incomplete", missing=["u"])
    assert subject.stands() == before
    send(subject, {"u": LARGE["u"]})
    assert receipt_of(complete(subject, {"w": LARGE["w"]}, key="k"))["step"] == 1
    assert_equal(subject.pull(), {name: torch.zeros_like(tensor) for name, tensor in LARGE.items()})


@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_parts_that_come_again_leave_nothing_of_what_they_replace(http: httpx.Client, wire: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(p.shape, generator=generator).to(wire) for name, p in LARGE.items()}
    spoilt, twice = ({name: grad * by for name, grad in grads.items()} for by in (math.inf, 2))
    whole, parted = (Subject.create(http, "adamw", params=LARGE, clip={"max_norm": 0.5}) for _ in range(2))
    theirs = receipt_of(whole.push({**grads, "w": twice["w"]}))
    send(parted, *parts(grads, "w"))
    send(parted, *parts(spoilt, "uv"))
    assert_refused(complete(parted), 422, "nonfinite-gradients", tensors=["u", "v"])
    send(parted, *parts(twice, "w"), kind="json")
    send(parted, *parts(grads, "v"))
    ours = receipt_of(complete(parted, *parts(grads, "u")))
    assert ours == {**theirs, "session": ours["session"]}
    assert_equal(parted.pull(), whole.pull())


@pytest.mark.parametrize("policy", [{"accumulate": {"steps": 2}}, {"loss_scale": {}}], ids=str)
def test_where_a_push_may_stand_still_the_last_part_needs_a_key_and_the_others_none(
    http: httpx.Client, policy: dict[str, Any]
) -> None:
    subject = Subject.create(http, "sgd", params=PARAMS, **policy)
    assert send(subject, GRADS).status_code == 200
    assert_refused(complete(subject, if_match='"0.0"'), 428, "precondition-required")
    assert complete(subject, key="k").status_code == 200
