"""Bodies that are no safetensors files, at every call that takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_subject import GRADS, SAFETENSORS, WEIGHTS, Subject, assert_refused

from raw_safetensors import entry, raw_file, tensor_file
from reaching import http_client

MEBI = 1024 * 1024
WEIGHT = entry([2, 3], 0, 24)
BIAS = entry([2], 24, 32)
ZEROS = bytes(32)
CONNECTED = {"connection.connect_tcp.complete", "connection.connect_unix_socket.complete"}


def text(*members: str) -> bytes:
    return ("{" + ",".join(members) + "}").encode()


def member(name: str, value: Any) -> str:
    return f"{json.dumps(name)}:{json.dumps(value)}"


def with_bias(value: Any) -> bytes:
    return raw_file({"weight": WEIGHT, "bias": value}, ZEROS)


def empties(count: int) -> bytes:
    return raw_file(text(*(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))))


# What it is, the body, and the rule that it breaks.
MALFORMED: list[tuple[str, Callable[[], bytes], str]] = [
    ("an empty body", lambda: b"", "length"),
    ("seven bytes", lambda: b"\x02\0\0\0\0\0\0", "length"),
    ("a header longer than the body", lambda: raw_file(b"{}", length=3), "truncated"),
    ("a header of 16 MiB that never comes", lambda: raw_file(b"{}", length=16 * MEBI), "truncated"),
    ("no header at all", lambda: bytes(8), "start"),
    ("an empty file", lambda: raw_file(b""), "start"),
    ("a leading space", lambda: raw_file(b" " + text(member("weight", WEIGHT), member("bias", BIAS)), ZEROS), "start"),
    ("a byte order mark", lambda: raw_file(b"\xef\xbb\xbf{}"), "start"),
    ("a list", lambda: raw_file(b"[]"), "start"),
    ("a pickle", lambda: b"\x80\x04\x95" + bytes(61), "truncated"),
    ("invalid UTF-8", lambda: raw_file(b'{"\xff":{}}'), "utf-8"),
    ("half a JSON object", lambda: raw_file(b'{"weight":'), "json"),
    ("NUL after the header", lambda: raw_file(text() + b"\0"), "json"),
    ("NaN in the header", lambda: raw_file(b'{"weight":NaN}'), "json"),
    ("a million brackets", lambda: raw_file(b'{"weight":' + b"[" * 1_000_000), "json"),
    ("an integer of 5,000 digits", lambda: raw_file(b'{"weight":' + b"9" * 5000 + b"}"), "json"),
    ("a name twice", lambda: raw_file(text(*[member("weight", WEIGHT)] * 2), bytes(24)), "duplicate"),
    ("a field twice", lambda: raw_file(b'{"weight":{"dtype":"F32","dtype":"F32"}}'), "duplicate"),
    ("metadata twice", lambda: raw_file(b'{"__metadata__":{},"__metadata__":{}}'), "duplicate"),
    ("metadata that is null", lambda: raw_file({"__metadata__": None}), "metadata"),
    ("metadata that is a list", lambda: raw_file({"__metadata__": []}), "metadata"),
    ("metadata of numbers", lambda: raw_file({"__metadata__": {"loss": 1}}), "metadata"),
    ("an entry that is null", lambda: with_bias(None), "entry"),
    ("an entry without offsets", lambda: with_bias({"dtype": "F32", "shape": [2]}), "entry"),
    ("an entry with a field more", lambda: with_bias({**BIAS, "stride": [1]}), "entry"),
    ("a shape that is a number", lambda: with_bias(entry(2, 24, 32)), "shape"),
    ("a negative size", lambda: with_bias(entry([-2], 24, 32)), "shape"),
    ("two negative sizes", lambda: with_bias(entry([-2, -1], 24, 32)), "shape"),
    ("a size that is true", lambda: with_bias(entry([2, True], 24, 32)), "shape"),
    ("a size that is 2.0", lambda: with_bias(entry([2.0], 24, 32)), "shape"),
    ("a size of 2⁶³", lambda: with_bias(entry([2**63], 24, 32)), "shape"),
    ("[2³², 2³²]", lambda: with_bias(entry([2**32, 2**32], 24, 32)), "shape"),
    ("sizes whose product is 2⁶⁴ + 2", lambda: with_bias(entry([2, 2**63 + 1], 24, 32)), "shape"),
    ("as many huge sizes as a header holds", lambda: with_bias(entry([2**63 - 1] * 700_000, 24, 32)), "shape"),
    ("offsets that are null", lambda: with_bias({**BIAS, "data_offsets": None}), "offsets"),
    ("three offsets", lambda: with_bias({**BIAS, "data_offsets": [24, 28, 32]}), "offsets"),
    ("a negative offset", lambda: with_bias(entry([2], -8, 0)), "offsets"),
    ("an end before the begin", lambda: with_bias(entry([2], 32, 24)), "offsets"),
    ("offsets beyond 2⁶³", lambda: with_bias(entry([2], 2**64, 2**64 + 8)), "offsets"),
    ("a span too short for the shape", lambda: with_bias(entry([2], 24, 28)), "span"),
    ("a span too long for the shape", lambda: with_bias(entry([2], 24, 36)), "span"),
    ("a span of another dtype", lambda: with_bias(entry([2], 24, 32, "F16")), "span"),
    ("an empty tensor with bytes", lambda: with_bias(entry([0], 24, 32)), "span"),
    ("overlapping tensors", lambda: with_bias(entry([2], 16, 24)), "overlap"),
    ("one tensor inside another", lambda: with_bias(entry([2], 8, 16)), "overlap"),
    ("a hole between tensors", lambda: with_bias(entry([2], 28, 36)), "hole"),
    ("a hole at the start", lambda: raw_file({"bias": BIAS}, ZEROS), "hole"),
]
NAME_THE_TENSOR = {"entry", "shape", "offsets", "span", "hole", "overlap"}
LARGE: list[tuple[str, Callable[[], bytes], int]] = [
    ("a header of 2⁶⁴ − 1 bytes", lambda: raw_file(b"{}", length=2**64 - 1), 16 * MEBI),
    ("a header one byte over 16 MiB", lambda: raw_file(b"{}", length=16 * MEBI + 1), 16 * MEBI),
    ("a million empty tensors", lambda: raw_file(b"", length=55_000_000), 16 * MEBI),
    ("a hundred thousand and one empty tensors", lambda: empties(100_001), 100_000),
]
CALLS = [("POST", "/steps"), ("PUT", "/params"), ("PUT", "/state"), ("POST", None)]


def send(subject: Subject, call: tuple[str, str | None], content: bytes) -> httpx.Response:
    method, below = call
    path = "/v1/sessions" if below is None else subject.path + below
    return subject.http.request(method, path, content=content, headers={**SAFETENSORS, "If-Match": '"1.0"'})


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "rule"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_a_file_that_breaks_a_rule_is_refused_by_its_name(
    subject: Subject, body: Callable[[], bytes], rule: str
) -> None:
    for call in CALLS:
        reply = send(subject, call, body())
        assert_refused(reply, 400, "malformed-safetensors", rule=rule)
        assert reply.json().get("tensor") == ("bias" if rule in NAME_THE_TENSOR else None)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("body", "limit"), [case[1:] for case in LARGE], ids=[case[0] for case in LARGE])
def test_a_file_beyond_a_limit_is_refused_with_the_limit(
    subject: Subject, body: Callable[[], bytes], limit: int
) -> None:
    content = body()
    for call in CALLS:
        assert_refused(send(subject, call, content), 413, "too-large", limit=limit)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "f32", "", None, ["F32"], "F" * 1000], ids=str)
def test_an_unknown_dtype_is_refused_with_those_there_are(subject: Subject, dtype: Any) -> None:
    for call in CALLS:
        reply = send(subject, call, with_bias(entry([2], 24, 32, dtype)))
        assert_refused(reply, 415, "unsupported-dtype", tensor="bias", supported=["F64", "F32", "F16", "BF16"])


@pytest.mark.usefixtures("unchanged")
def test_bytes_behind_the_last_tensor_are_refused(subject: Subject) -> None:
    for call in CALLS[:2]:
        for more in (1, 100, 3 * MEBI):
            reply = send(subject, call, tensor_file(GRADS) + bytes(more))
            assert_refused(reply, 400, "malformed-safetensors", rule="trailing")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("order", [["weight", "bias"], ["bias", "weight"]], ids=str)
def test_a_payload_that_ends_early_is_refused(subject: Subject, order: list[str]) -> None:
    whole = tensor_file({name: GRADS[name] for name in order})
    for call in CALLS[:2]:
        for cut in (1, 8, 31, 32):
            reply = send(subject, call, whole[:-cut])
            assert_refused(reply, 400, "malformed-safetensors", rule="truncated")


def test_the_state_and_a_new_session_refuse_bytes_that_are_missing_or_too_many(subject: Subject) -> None:
    state = subject.http.get(f"{subject.path}/state").content
    new = tensor_file(WEIGHTS, {"session": '{"optimizer": {"name": "sgd"}}'})
    before = subject.stands()
    for call, body in ((("PUT", "/state"), state), (("POST", None), new)):
        assert_refused(send(subject, call, body + b"\0"), 400, "malformed-safetensors", rule="trailing")
        assert_refused(send(subject, call, body[:-1]), 400, "malformed-safetensors", rule="truncated")
    assert subject.stands() == before


@pytest.mark.usefixtures("unchanged")
def test_the_connection_goes_on_after_a_refusal(server_url: str, subject: Subject) -> None:
    opened = []

    def trace(event: str, _: object) -> None:
        opened.append(event) if event in CONNECTED else None

    with http_client(server_url) as one:
        for _ in range(3):
            request = one.build_request(
                "POST", f"{subject.path}/steps", content=raw_file(b" {}", bytes(2 * MEBI)), headers=SAFETENSORS
            )
            request.headers["If-Match"] = '"1"'
            request.extensions["trace"] = trace
            assert_refused(one.send(request), 400, "malformed-safetensors", rule="start")
    assert len(opened) == 1
