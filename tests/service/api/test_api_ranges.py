"""`Range` on weights: some of a body's bytes, of exactly one version."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import torch
from api_subject import Subject, assert_refused
from raw_socket import connected, head, status_of

LARGE = {"w": torch.arange(1_500_000.0), "b": torch.ones(5), "v": torch.arange(7.0)}


@pytest.fixture
def large(http: httpx.Client) -> Iterator[Subject]:
    subject = Subject.create(http, "sgd", params=LARGE, lr=0.5)
    yield subject
    http.delete(subject.path)


def get(subject: Subject, ranges: str, query: str = "", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return subject.http.get(f"{subject.path}/params{query}", headers={"Range": ranges} | named)


@pytest.mark.parametrize("query", ["", "?dtype=bf16", "?names=w&names=v", "?dtype=f64&names=b"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 11), (0, 499_999), (177, 1_234_567), (1_000_001, 10**18)])
def test_a_range_is_those_bytes_of_the_body_and_says_which(large: Subject, query: str, first: int, last: int) -> None:
    whole = large.http.get(f"{large.path}/params{query}")
    assert whole.headers["accept-ranges"] == "bytes"
    reply = get(large, f"bytes={first}-{last}", query)
    if first >= len(whole.content):
        assert_refused(reply, 416, "range-not-satisfiable", length=len(whole.content))
        assert reply.headers["content-range"] == f"bytes */{len(whole.content)}"
        return
    assert reply.status_code == 206
    assert reply.content == whole.content[first : last + 1]
    stop = min(last, len(whole.content) - 1)
    assert reply.headers["content-range"] == f"bytes {first}-{stop}/{len(whole.content)}"
    assert reply.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("ranges", "part"),
    [
        ("bytes=-9", slice(-9, None)),
        ("bytes=2000000-", slice(2_000_000, None)),
        ("Bytes= 5-6", slice(5, 7)),
        ("bytes=-99999999", slice(None)),
    ],
)
def test_a_range_may_be_open_to_one_side(large: Subject, ranges: str, part: slice) -> None:
    reply = get(large, ranges)
    assert (reply.status_code, reply.content) == (206, large.http.get(f"{large.path}/params").content[part])


@pytest.mark.parametrize("ranges", ["bytes=0-1,3-4", "items=0-1", "bytes=5-2", "bytes=-", "bytes", "", "bytes=a-b"])
def test_what_is_not_one_range_of_bytes_is_passed_over(large: Subject, ranges: str) -> None:
    assert get(large, ranges).status_code == 200


@pytest.mark.parametrize("ranges", ["bytes=-0", f"bytes={10**18}-"])
def test_a_range_of_nothing_is_refused_with_the_length(large: Subject, ranges: str) -> None:
    length = len(large.http.get(f"{large.path}/params").content)
    assert_refused(get(large, ranges), 416, "range-not-satisfiable", length=length)


def test_ten_thousand_ranges_cost_no_more_than_one_body(server_url: str, large: Subject) -> None:
    ranges = "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000))
    with connected(server_url) as connection:
        connection.sendall(head("GET", f"{large.path}/params", 0, Range=ranges))
        assert status_of(connection) in {200, 400, 431}
    assert large.http.get(f"{large.path}/params").status_code == 200


def test_json_comes_whole(subject: Subject) -> None:
    reply = get(subject, "bytes=0-1", Accept="application/json")
    assert (reply.status_code, reply.json()["step"]) == (200, 1)
    assert "accept-ranges" not in reply.headers


def test_two_ranges_are_never_of_two_versions(large: Subject) -> None:
    before = large.http.get(f"{large.path}/params").content
    first = get(large, "bytes=0-999999", If_Match='"0.0"')
    large.push({name: torch.ones_like(tensor) for name, tensor in LARGE.items()})
    assert_refused(get(large, "bytes=1000000-", If_Match='"0.0"'), 412, "stale-step", step=1, etag="1.0")
    assert first.content == before[:1_000_000]
    assert get(large, "bytes=1000000-", If_Match='"1.0"').status_code == 206


def test_a_download_that_broke_off_goes_on_only_if_the_weights_are_the_same(large: Subject) -> None:
    assert get(large, "bytes=1000000-", If_Range='"0.0"').status_code == 206
    large.push({name: torch.ones_like(tensor) for name, tensor in LARGE.items()})
    again = get(large, "bytes=1000000-", If_Range='"0.0"')
    assert (again.status_code, again.content) == (200, large.http.get(f"{large.path}/params").content)
    assert get(large, "bytes=1000000-", If_Range="Wed, 25 Nov 2026 03:25:25 GMT").status_code == 200


def test_if_match_holds_without_a_range_too(large: Subject) -> None:
    assert large.http.get(f"{large.path}/params", headers={"If-Match": '"0.0"'}).status_code == 200
    reply = large.http.get(f"{large.path}/params", headers={"If-Match": '"7.0"'})
    assert_refused(reply, 412, "stale-step", step=0, etag="0.0")


def test_a_range_that_is_left_half_read_leaves_the_session_free(server_url: str, large: Subject) -> None:
    with connected(server_url) as connection:
        connection.sendall(head("GET", f"{large.path}/params", 0, Range="bytes=8-"))
        assert connection.recv(100).startswith(b"HTTP/1.1 206")
    for step in (1, 2, 3):
        assert large.push({name: torch.ones_like(tensor) for name, tensor in LARGE.items()}).status_code == 200
        assert large.etag() == f'"{step}.0"'
