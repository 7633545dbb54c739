"""If-Match and Idempotency-Key: every effect happens once."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from api_subject import (
    GRADS,
    JSON,
    SAFETENSORS,
    WEIGHTS,
    Subject,
    assert_equal,
    assert_refused,
    lists,
    receipt_of,
    wait_until_in_flight,
)
from raw_socket import connected, push_head, status_of
from safetensors.torch import load

from raw_safetensors import tensor_file

OTHER = {name: -grad for name, grad in GRADS.items()}
MALFORMED_MATCHES = [
    "1", "1.0", '"1', '1"', "''", '""', '"x"', '"-1"', '"+1"', '"1."', '".0"', '"1.0.0"', '"1,0"', '"1" "2"', '"1",',
    ",", "*", '"1e0"', '"' + "1" * 20 + '"', "x" * 10_000,
]  # fmt: skip
MALFORMED_KEYS = ["", "a b", "a\tb", "k" * 256, "k" * 10_000, "naïve"]


@pytest.mark.parametrize("match", ['"1.0"', '"1"', '"9.9", "1.0"', '"0","1"'])
def test_a_push_that_builds_on_the_present_version_steps(subject: Subject, match: str) -> None:
    reply = subject.push(if_match=match)
    assert receipt_of(reply)["step"] == 2
    assert reply.headers["etag"] == '"2.0"'


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("match", ['"0"', '"0.0"', '"2"', '"1.1"', '"0.0", "2.0"', f'"{2**63}"'])
def test_a_stale_push_is_told_where_the_session_stands(subject: Subject, match: str) -> None:
    assert_refused(subject.push(if_match=match), 412, "stale-step", step=1, etag="1.0")
    for method, below in (("PUT", "/params"), ("PUT", "/state")):
        body = subject.http.get(subject.path + below).content
        headers = {**SAFETENSORS, "If-Match": match}
        reply = subject.http.request(method, subject.path + below, content=body, headers=headers)
        assert_refused(reply, 412, "stale-step", step=1, etag="1.0")


@pytest.mark.usefixtures("unchanged")
def test_a_malformed_version_is_refused(subject: Subject) -> None:
    for match in MALFORMED_MATCHES:
        assert_refused(subject.push(if_match=match), 400, "malformed-header", header="If-Match")
        reply = subject.http.get(f"{subject.path}/params", headers={"If-None-Match": match})
        assert_refused(reply, 400, "malformed-header", header="If-None-Match")
        reply = subject.http.put(f"{subject.path}/params", json={"params": {}}, headers={"If-Match": match})
        assert_refused(reply, 400, "malformed-header", header="If-Match")


@pytest.mark.usefixtures("unchanged")
def test_a_malformed_key_is_refused(subject: Subject) -> None:
    for key in MALFORMED_KEYS:
        headers = [(b"Idempotency-Key", key.encode()), (b"If-Match", b'"1"'), (b"Content-Type", b"application/json")]
        reply = subject.http.post(f"{subject.path}/steps", json={"grads": lists(GRADS)}, headers=headers)
        assert_refused(reply, 400, "malformed-header", header="Idempotency-Key")


def test_the_longest_key_is_a_key(subject: Subject) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))).ljust(255, "~")
    assert receipt_of(subject.push(key=key))["duplicate"] is False
    assert receipt_of(subject.push(key=key))["duplicate"] is True


@pytest.mark.usefixtures("unchanged")
def test_a_push_that_names_nothing_is_told_what_to_name(subject: Subject) -> None:
    reply = subject.http.post(f"{subject.path}/steps", content=tensor_file(GRADS), headers=SAFETENSORS)
    assert_refused(reply, 428, "precondition-required", step=1, etag="1.0")


def test_weights_that_were_put_make_the_version_before_stale(subject: Subject) -> None:
    weights = subject.http.get(f"{subject.path}/params").content
    assert subject.http.put(f"{subject.path}/params", content=weights, headers=SAFETENSORS).json()["etag"] == "1.1"
    assert_refused(subject.push(if_match='"1.0"'), 412, "stale-step", step=1, etag="1.1")
    assert subject.push(if_match='"1"').headers["etag"] == '"2.1"'


def test_a_retry_returns_the_first_receipt_and_the_weights_as_they_stand(subject: Subject) -> None:
    first = subject.push(key="k", loss="0.25")
    retry = subject.push(key="k", loss="0.25")
    assert receipt_of(retry) == {**receipt_of(first), "duplicate": True}
    assert retry.headers["etag"] == first.headers["etag"] == '"2.0"'
    assert_equal(load(retry.content), load(first.content))
    others = subject.push(OTHER, key="other")
    late = subject.push(key="k", loss="0.25")
    assert receipt_of(late) == receipt_of(retry)
    assert late.headers["etag"] == others.headers["etag"] == '"3.0"'
    assert_equal(load(late.content), load(others.content))
    assert [row["step"] for row in subject.steps()] == [1, 2, 3]
    assert not any(row["duplicate"] for row in subject.steps())


def test_a_retry_is_answered_although_its_if_match_has_become_stale(subject: Subject) -> None:
    first = subject.push(key="k", if_match='"1.0"')
    retry = subject.push(key="k", if_match='"1.0"')
    assert receipt_of(retry) == {**receipt_of(first), "duplicate": True}
    assert_refused(subject.push(key="new", if_match='"1.0"'), 412, "stale-step", step=2)


@pytest.mark.parametrize("policy", ["reject", "skip", "zero"])
def test_a_retry_in_another_layout_order_or_json_is_known_again_by_its_bytes(http: httpx.Client, policy: str) -> None:
    subject = Subject.create(http, nonfinite=policy)
    turned = {name: GRADS[name] for name in ("bias", "weight")}
    for key, grads in (("a", GRADS), ("b", turned)):
        first = receipt_of(subject.push(grads, key=key))
        assert receipt_of(subject.push(grads, key=key)) == {**first, "duplicate": True}
    sent: dict[str, Any] = {
        "url": f"{subject.path}/steps",
        "json": {"grads": lists(GRADS)},
        "headers": {"Idempotency-Key": "c"},
    }
    first = receipt_of(http.post(**sent))
    assert receipt_of(http.post(**sent)) == {**first, "duplicate": True}


@pytest.mark.parametrize("kind", ["safetensors", "another order", "json"])
def test_a_retry_is_known_again_although_its_gradients_were_mended(http: httpx.Client, kind: str) -> None:
    subject = Subject.create(http, nonfinite="zero")
    grads = {**GRADS, "bias": torch.tensor([float("nan"), 1.0])}
    if kind == "json":
        # JSON has no NaN; a number beyond float32 is infinite when it lands.
        body = {"grads": {**lists(GRADS), "bias": [1e300, 1.0]}}
        replies = [http.post(f"{subject.path}/steps", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    else:
        order = ["weight", "bias"] if kind == "safetensors" else ["bias", "weight"]
        replies = [subject.push({name: grads[name] for name in order}, key="k") for _ in range(2)]
    assert receipt_of(replies[1]) == {**receipt_of(replies[0]), "duplicate": True}


def test_a_key_with_another_body_is_refused(subject: Subject) -> None:
    subject.push(key="k")
    before = subject.stands()
    turned = {name: GRADS[name] for name in ("bias", "weight")}
    broken = {name: grad * float("nan") for name, grad in GRADS.items()}
    for grads in (OTHER, turned, broken):
        assert_refused(subject.push(grads, key="k"), 422, "key-reused")
    assert_refused(subject.push(key="k", loss="1"), 422, "key-reused")
    assert subject.stands() == before


def test_a_key_of_one_session_is_nothing_to_another(http: httpx.Client, subject: Subject) -> None:
    other = Subject.create(http)
    assert receipt_of(subject.push(key="shared"))["session"] != receipt_of(other.push(OTHER, key="shared"))["session"]


def test_a_refused_push_leaves_its_key_unused(subject: Subject) -> None:
    refused = [
        subject.push({**GRADS, "bias": torch.tensor([float("inf"), 0])}, key="k"),
        subject.push({"weight": GRADS["weight"]}, key="k"),
        subject.push(key="k", loss="NaN"),
        subject.push(key="k", if_match='"0"'),
        subject.http.post(f"{subject.path}/steps", content=b"{", headers={**JSON, "Idempotency-Key": "k"}),
    ]
    assert [reply.status_code for reply in refused] == [422, 422, 422, 412, 400]
    assert receipt_of(subject.push(key="k"))["duplicate"] is False
    assert receipt_of(subject.push(key="k"))["duplicate"] is True


def test_a_key_whose_push_is_on_its_way_is_refused_for_now(server_url: str, subject: Subject) -> None:
    content = tensor_file(GRADS)
    with connected(server_url) as connection:
        connection.sendall(push_head(subject.path, len(content), idempotency_key="k") + content[:50])
        wait_until_in_flight(subject, "k")
        reply = subject.push(key="k")
        assert_refused(reply, 409, "step-in-flight")
        assert reply.headers["retry-after"] == "1"
        assert len(subject.steps()) == 1
        connection.sendall(content[50:])
        assert status_of(connection) == 200
    assert receipt_of(subject.push(key="k"))["duplicate"] is True
    assert [row["step"] for row in subject.steps()] == [1, 2]


def test_of_two_pushes_that_build_on_one_step_the_second_is_told_so(server_url: str, subject: Subject) -> None:
    content = tensor_file(GRADS)
    with connected(server_url) as slow, connected(server_url) as waiting:
        for connection, key in ((slow, "slow"), (waiting, "waiting")):
            connection.sendall(push_head(subject.path, len(content), idempotency_key=key, if_match='"1.0"'))
            wait_until_in_flight(subject, key)
        waiting.sendall(content)
        slow.sendall(content)
        assert [status_of(slow), status_of(waiting)] == [200, 412]
    assert len(subject.steps()) == 2


def test_a_version_that_a_proxy_has_weakened_is_still_ours(subject: Subject) -> None:
    reply = subject.http.get(f"{subject.path}/params", headers={"If-None-Match": 'W/"1.0"'})
    assert reply.status_code == 304
    assert receipt_of(subject.push(if_match='W/"1.0"'))["step"] == 2


def test_several_headers_of_one_name_are_one_list(subject: Subject) -> None:
    headers = [("If-Match", '"7"'), ("If-Match", '"1.0"')]
    reply = subject.http.post(f"{subject.path}/steps", json={"grads": lists(GRADS)}, headers=headers)
    assert receipt_of(reply)["step"] == 2
    headers = [("If-Match", '"2"'), ("If-Match", '"7.0"')]
    reply = subject.http.put(f"{subject.path}/params", json={"params": lists(WEIGHTS)}, headers=headers)
    assert reply.status_code == 200
