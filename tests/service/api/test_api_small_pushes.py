"""Small pushes, which are answered at once where all of them is there, however their bytes come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import BinaryIO

import httpx
import pytest
import torch
from api_subject import GRADS, Subject, assert_equal, wait_until_in_flight
from raw_socket import connected, push_head
from safetensors.torch import load

from raw_safetensors import tensor_file
from reaching import connect

CONTENT = tensor_file(GRADS, {"loss": "0.5"})


def request(subject: Subject, key: str, content: bytes = CONTENT) -> bytes:
    return push_head(subject.path, len(content), idempotency_key=key) + content


def reply_from(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next reply."""
    status = int(stream.readline().split()[1])
    lines = iter(lambda: stream.readline().strip().decode(), "")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return status, headers, stream.read(int(headers["content-length"]))


def cuts(whole: bytes) -> list[list[bytes]]:
    """The same bytes in several pieces."""
    head, body = whole.index(b"\r\n\r\n") + 4, len(whole)
    places = [[], [head], [head + 3], [head + 60], [body - 1], [5, head - 2, head + 8, body - 20], range(1, body)]
    return [[whole[a:b] for a, b in zip([0, *cut], [*cut, body], strict=True)] for cut in places]


@pytest.mark.parametrize("way", range(7))
def test_a_small_push_is_taken_alike_however_its_bytes_come(server_url: str, http: httpx.Client, way: int) -> None:
    usual, subject = Subject.create(http, lr=0.1), Subject.create(http, lr=0.1)
    expected = usual.push(key="k", loss="0.5")
    with connected(server_url) as connection, connection.makefile("rb") as stream:
        for piece in cuts(request(subject, "k"))[way]:
            connection.sendall(piece)
        status, headers, body = reply_from(stream)
    assert (status, headers["etag"], headers["content-type"]) == (200, '"1.0"', expected.headers["content-type"])
    assert_equal(load(body), load(expected.content))
    for each in (usual, subject):
        http.delete(each.path)


def test_pushes_sent_together_are_taken_in_their_order(server_url: str, subject: Subject) -> None:
    with connected(server_url) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"".join(request(subject, f"k{n}") for n in range(5)))
        replies = [reply_from(stream) for _ in range(5)]
    assert [(status, headers["etag"]) for status, headers, _ in replies] == [(200, f'"{n}.0"') for n in range(2, 7)]
    assert [row["step"] for row in subject.steps()] == [1, 2, 3, 4, 5, 6]


def test_a_small_push_waits_for_its_turn(server_url: str, subject: Subject) -> None:
    first = request(subject, "first")
    with connected(server_url) as slow, connected(server_url) as quick:
        slow.sendall(first[:-1])
        wait_until_in_flight(subject, "first")
        quick.sendall(request(subject, "second"))
        wait_until_in_flight(subject, "second")
        slow.sendall(first[-1:])
        etags = []
        for connection in (slow, quick):
            with connection.makefile("rb") as stream:
                etags.append(reply_from(stream)[1]["etag"])
    assert etags == ['"2.0"', '"3.0"']


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("content", "rule"), [(CONTENT[:-1], "truncated"), (CONTENT + b"x", "trailing"), (b"1234567", "length")]
)
def test_a_small_body_of_the_wrong_length_is_refused(
    server_url: str, subject: Subject, content: bytes, rule: str
) -> None:
    with connected(server_url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(subject, "k", content) + request(subject, "k", content))
        for _ in range(2):  # the connection goes on behind a refusal
            status, _, body = reply_from(stream)
            assert (status, f'"rule":"{rule}"' in body.decode()) == (400, True)


@pytest.mark.parametrize("said", ["close", "Close"])
def test_a_small_push_ends_a_connection_that_is_to_be_closed(server_url: str, subject: Subject, said: str) -> None:
    with connected(server_url) as connection, connection.makefile("rb") as stream:
        connection.sendall(push_head(subject.path, len(CONTENT), idempotency_key="k", connection=said) + CONTENT)
        status, headers, _ = reply_from(stream)
        assert (status, headers["connection"]) == (200, "close")
        assert stream.read() == b""


@pytest.fixture
def wide(http: httpx.Client) -> Iterator[Subject]:
    """A session whose replies are as large as small ones are."""
    subject = Subject.create(http, "sgd", params={"w": torch.zeros(16_000)}, lr=1.0)
    yield subject
    http.delete(subject.path)


def test_replies_that_are_read_late_are_whole_and_in_their_order(server_url: str, wide: Subject) -> None:
    content, pushes = tensor_file({"w": torch.full((16_000,), -1.0)}), 100
    with connect(server_url, receive_bytes=4096) as connection, connection.makefile("rb") as stream:
        sent = b"".join(request(wide, f"k{n}", content) for n in range(pushes))
        sending = threading.Thread(target=connection.sendall, args=(sent,))
        sending.start()
        for step in range(1, pushes + 1):
            status, headers, body = reply_from(stream)
            assert (status, headers["etag"]) == (200, f'"{step}.0"')
            assert_equal(load(body), {"w": torch.full((16_000,), float(step))})
        sending.join()
