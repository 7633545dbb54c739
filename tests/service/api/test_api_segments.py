"""A push whose body comes in segments, over several connections at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import torch
from api_subject import SAFETENSORS, Subject, assert_equal, assert_refused, receipt_of, wait_until_in_flight
from raw_socket import connected, push_head, status_of

from raw_safetensors import tensor_file
from reaching import http_client
from server_process import ServerProcess

pytestmark = pytest.mark.usefixtures("on_host")

GRID = 2**23
SHAPES = {"a": (3000, 1000), "b": (7,), "c": (3_500_000,)}
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = {name: torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}
GRADS = {name: torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}
CONTENT = tensor_file(GRADS, {"loss": "0.5"})
BEHIND = 8 + int.from_bytes(CONTENT[:8], "little")
CUT = BEHIND + GRID
TOTAL = len(CONTENT)


@pytest.fixture
def large(http: httpx.Client) -> Iterator[Subject]:
    subject = Subject.create(http, "adamw", params=WEIGHTS)
    yield subject
    http.delete(subject.path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def headers(start: int, stop: int, total: int = TOTAL, **others: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in others.items()}
    return {"Content-Range": f"bytes {start}-{stop - 1}/{total}", "Idempotency-Key": "k", **SAFETENSORS} | named


def send(
    subject: Subject, start: int, stop: int, content: bytes = CONTENT, query: str = "", **others: str
) -> httpx.Response:
    """One segment of a body."""
    named = headers(start, stop, len(content), **others)
    return subject.http.post(f"{subject.path}/steps{query}", content=content[start:stop], headers=named)


def raw_head(path: str, start: int, stop: int, **others: str) -> bytes:
    named = {name.replace("-", "_"): value for name, value in headers(start, stop, **others).items()}
    return push_head(path, stop - start, **{name: named[name] for name in named if name != "Content_Type"})


def in_segments(
    threads: ThreadPoolExecutor, subject: Subject, *cuts: int, content: bytes = CONTENT, **others: str
) -> list[httpx.Response]:
    """All segments at once, the leading one last."""
    ends = [0, *cuts, len(content)]
    spans = list(pairwise(ends))[::-1]
    sent: list[Future[httpx.Response]] = [threads.submit(send, subject, *span, content, **others) for span in spans]
    return [future.result() for future in sent][::-1]


@pytest.mark.parametrize("cuts", [(), (CUT,), (CUT, CUT + GRID), (CUT + 2 * GRID,)])
def test_a_push_in_segments_is_to_the_bit_what_it_is_whole(
    http: httpx.Client, threads: ThreadPoolExecutor, large: Subject, cuts: tuple[int, ...]
) -> None:
    whole = Subject.create(http, "adamw", params=WEIGHTS)
    lead, *others = in_segments(threads, large, *cuts)
    assert [reply.status_code for reply in others] == [202] * len(cuts)
    assert sum(reply.json()["received"] for reply in others) == TOTAL - [*cuts, TOTAL][0]
    receipt = receipt_of(lead)
    assert {**receipt, "session": ""} == {**receipt_of(whole.push(GRADS, loss="0.5")), "session": ""}
    assert_equal(large.pull(), whole.pull())
    assert large.steps()[0]["grad_norm"] == receipt["grad_norm"]
    http.delete(whole.path)


@pytest.mark.parametrize("policy", [{}, {"clip": {"max_norm": 1.0}}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_segments_come_in_any_one_dtype(
    http: httpx.Client, threads: ThreadPoolExecutor, dtype: torch.dtype, policy: dict[str, object]
) -> None:
    one, other = (Subject.create(http, "sgd", params=WEIGHTS, lr=0.5, **policy) for _ in range(2))
    grads = {name: tensor.to(dtype) for name, tensor in GRADS.items()}
    content = tensor_file(grads)
    lead, _ = in_segments(threads, one, 8 + int.from_bytes(content[:8], "little") + GRID, content=content)
    assert {**receipt_of(lead), "session": ""} == {**receipt_of(other.push(grads)), "session": ""}
    assert_equal(one.pull(), other.pull())
    for subject in (one, other):
        http.delete(subject.path)


def test_a_retry_comes_whole_or_in_segments_and_counts_once(large: Subject, threads: ThreadPoolExecutor) -> None:
    first = receipt_of(in_segments(threads, large, CUT)[0])
    again = {**first, "duplicate": True}
    assert receipt_of(in_segments(threads, large, CUT + GRID)[0]) == again
    assert receipt_of(large.push(GRADS, key="k", loss="0.5")) == again
    other = tensor_file({**GRADS, "c": GRADS["c"] + 1}, {"loss": "0.5"})
    assert_refused(in_segments(threads, large, CUT, content=other)[0], 422, "key-reused")
    assert large.etag() == '"1.0"'


def test_a_push_that_came_whole_is_known_when_it_comes_again_in_segments(
    large: Subject, threads: ThreadPoolExecutor
) -> None:
    large.push(GRADS, key="k", loss="0.5")
    assert receipt_of(in_segments(threads, large, CUT)[0])["duplicate"]


def test_the_leading_segment_is_refused_for_all(large: Subject, threads: ThreadPoolExecutor) -> None:
    before = large.stands()
    for reply in in_segments(threads, large, CUT, if_match='"7.0"'):
        assert_refused(reply, 412, "stale-step", step=0, etag="0.0")
    wrong = tensor_file({"x": torch.zeros(SHAPES["a"]), "b": GRADS["b"], "c": GRADS["c"]})
    for reply in in_segments(threads, large, CUT, content=wrong):
        assert_refused(reply, 422, "tensor-mismatch", missing=["a"], unknown=["x"])
    assert large.stands() == before


def test_gradients_that_are_not_finite_are_refused_and_change_nothing(
    large: Subject, threads: ThreadPoolExecutor
) -> None:
    before = large.stands()
    content = tensor_file({**GRADS, "c": torch.full(SHAPES["c"], torch.inf)}, {"loss": "0.5"})
    lead, other = in_segments(threads, large, CUT, content=content)
    assert_refused(lead, 422, "nonfinite-gradients", tensors=["c"])
    assert other.status_code == 202
    assert large.stands() == before


def test_segments_wait_while_the_leading_one_waits_for_its_turn(
    server_url: str, large: Subject, threads: ThreadPoolExecutor
) -> None:
    with connected(server_url) as connection:
        connection.sendall(push_head(large.path, TOTAL, idempotency_key="before") + CONTENT[:1_000_000])
        wait_until_in_flight(large, "before")
        sent = threads.submit(in_segments, threads, large, CUT)
        wait_until_in_flight(large, "k")
        connection.sendall(CONTENT[1_000_000:])
        assert status_of(connection) == 200
        assert receipt_of(sent.result()[0])["step"] == 2


@pytest.mark.parametrize(
    ("said", "length"),
    [("bytes 0-9", 10), ("items 0-9/20", 10), ("bytes 9-0/20", 10), ("bytes 0-20/20", 21), ("bytes 0-9/20", 11),
     ("bytes -9/20", 10), ("bytes 0-9/*", 10), (f"bytes 0-9/{'9' * 30}", 10)],
)  # fmt: skip
def test_a_content_range_that_cannot_be_is_refused(large: Subject, said: str, length: int) -> None:
    named = {**SAFETENSORS, "Idempotency-Key": "k", "Content-Range": said}
    reply = large.http.post(f"{large.path}/steps", content=bytes(length), headers=named)
    assert_refused(reply, 400, "malformed-header")


def test_segments_need_a_key(large: Subject) -> None:
    named = {name: value for name, value in headers(0, CUT).items() if name != "Idempotency-Key"}
    reply = large.http.post(f"{large.path}/steps", content=CONTENT[:CUT], headers=named | {"If-Match": '"0.0"'})
    assert_refused(reply, 428, "precondition-required", step=0, etag="0.0")


def test_what_cannot_come_in_segments_is_told_to_come_whole(
    http: httpx.Client, large: Subject, subject: Subject, threads: ThreadPoolExecutor
) -> None:
    before = large.stands()
    assert large.info()["segments"]
    assert not subject.info()["segments"]
    tiny = {**headers(0, 8, 16)}
    assert_refused(http.post(f"{subject.path}/steps", content=bytes(8), headers=tiny), 422, "segments-not-taken")
    json = headers(0, 8, 16, Content_Type="application/json", Accept=SAFETENSORS["Content-Type"])
    assert_refused(http.post(f"{large.path}/steps", content=bytes(8), headers=json), 422, "segments-not-taken")
    assert_refused(send(large, 0, CUT, query="?contribution=c"), 422, "segments-not-taken")
    turned = tensor_file({name: GRADS[name] for name in "cba"})
    mixed = tensor_file({**GRADS, "c": GRADS["c"].half()})
    for content in (turned, mixed):
        for reply in in_segments(threads, large, CUT, content=content):
            assert_refused(reply, 422, "segments-not-taken")
    assert large.stands() == before


def test_a_segment_that_ends_elsewhere_than_on_the_grid_is_refused(large: Subject, threads: ThreadPoolExecutor) -> None:
    before = large.stands()
    for reply in in_segments(threads, large, CUT + 4):
        assert_refused(reply, 422, "segment-misplaced", header_bytes=BEHIND, multiple=GRID)
    for reply in in_segments(threads, large, BEHIND):
        assert_refused(reply, 422, "segment-misplaced", header_bytes=BEHIND, multiple=GRID)
    for reply in in_segments(threads, large, CUT, content=CONTENT + bytes(8)):
        assert_refused(reply, 422, "segment-misplaced", total=TOTAL)
    assert large.stands() == before


def test_a_segment_over_another_is_refused_alone(server_url: str, large: Subject, threads: ThreadPoolExecutor) -> None:
    lead = threads.submit(send, large, 0, CUT)
    with connected(server_url) as second:
        second.sendall(raw_head(large.path, CUT, TOTAL) + CONTENT[CUT : CUT + 10])
        for reply in (send(large, CUT + GRID, TOTAL), send(large, CUT, CUT + GRID)):
            if reply.status_code != 202:  # it may come before the other
                assert_refused(reply, 422, "segment-misplaced", total=TOTAL)
        second.sendall(CONTENT[CUT + 10 :])
        status = status_of(second)
    assert status in {202, 422}
    if status == 202:
        assert receipt_of(lead.result())["step"] == 1


def test_a_segment_of_another_total_is_refused_alone(server_url: str, large: Subject) -> None:
    with connected(server_url) as lead:
        lead.sendall(raw_head(large.path, 0, CUT) + CONTENT[:CUT])
        wait_until_in_flight(large, "k")
        content = CONTENT + bytes(GRID)
        assert_refused(send(large, CUT, CUT + GRID, content), 422, "segment-misplaced", total=TOTAL)
        assert send(large, CUT, TOTAL).status_code == 202
        assert status_of(lead) == 200


@pytest.mark.parametrize("dying", ["lead", "other"])
@pytest.mark.parametrize("sent", [0, 2_000_000])
def test_a_segment_that_dies_ends_the_push_and_frees_the_session(
    server_url: str, large: Subject, dying: str, sent: int
) -> None:
    before = large.stands()
    with connected(server_url) as lead, connected(server_url) as other:
        left, stays, cut_off = (lead, other, CONTENT[: BEHIND + sent]) if dying == "lead" else (
            other, lead, CONTENT[CUT : CUT + sent])  # fmt: skip
        lead.sendall(raw_head(large.path, 0, CUT))
        other.sendall(raw_head(large.path, CUT, TOTAL))
        if dying == "lead":
            left.sendall(cut_off)
            stays.sendall(CONTENT[CUT:-1])
        else:
            stays.sendall(CONTENT[: CUT - 1])
            left.sendall(cut_off)
        wait_until_in_flight(large, "k")
        left.close()
        if dying == "other":
            stays.sendall(CONTENT[CUT - 1 : CUT])
            assert status_of(stays) == 408
        assert receipt_of(large.push(GRADS, key="another"))["step"] == 1
    assert large.pull().keys() == WEIGHTS.keys()
    assert before["steps"] == []
    assert len(large.steps()) == 1


def test_segments_that_do_not_come_are_given_up(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", IDLE_TIMEOUT_S="0.5") as server, http_client(server.url) as http:
        subject = Subject.create(http, "adamw", params=WEIGHTS)
        before = subject.stands()
        assert_refused(send(subject, 0, CUT), 408, "segments-incomplete")
        assert_refused(send(subject, CUT, TOTAL), 408, "segments-incomplete")
        with connected(server.url) as lead, connected(server.url) as other:
            lead.sendall(raw_head(subject.path, 0, CUT) + CONTENT[:CUT])
            other.sendall(raw_head(subject.path, CUT, TOTAL) + CONTENT[CUT : CUT + 2_000_000])
            assert status_of(other) == 408
            assert status_of(lead) == 408
        assert subject.stands() == before
        assert receipt_of(subject.push(GRADS, key="k"))["step"] == 1


def test_a_second_push_of_the_key_is_in_flight_and_disturbs_nothing(server_url: str, large: Subject) -> None:
    with connected(server_url) as lead:
        lead.sendall(raw_head(large.path, 0, CUT) + CONTENT[:CUT])
        wait_until_in_flight(large, "k")
        assert_refused(send(large, 0, CUT), 409, "step-in-flight")
        assert_refused(large.push(GRADS, key="k"), 409, "step-in-flight")
        assert send(large, CUT, TOTAL).status_code == 202
        assert status_of(lead) == 200
