"""Uploads that end or stop half way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from api_subject import Subject, receipt_of, wait_until_in_flight
from openapi_contract import Contract
from raw_socket import connected, head, push_head, status_of

from raw_safetensors import tensor_file
from reaching import http_client
from server_process import ServerProcess

LARGE = {"w": torch.arange(500_000.0)}
CONTENT = tensor_file(LARGE)


@pytest.fixture
def large(http: httpx.Client) -> Iterator[Subject]:
    subject = Subject.create(http, "adamw", params=LARGE, lr=0.1)
    subject.push(LARGE)
    yield subject
    http.delete(subject.path)


@pytest.mark.parametrize("percent", [0, 1, 50, 99])
@pytest.mark.parametrize("kind", ["application/vnd.safetensors", "application/json"])
def test_a_push_cut_off_changes_nothing_and_frees_the_session(
    server_url: str, large: Subject, percent: int, kind: str
) -> None:
    before = large.stands()
    with connected(server_url) as connection:
        headers = head("POST", f"{large.path}/steps", len(CONTENT), content_type=kind, idempotency_key="k")
        connection.sendall(headers + CONTENT[: len(CONTENT) * percent // 100])
        wait_until_in_flight(large, "k")
    while (reply := large.push(LARGE, key="k", if_match='"7777"')).status_code == 409:
        pass
    assert reply.status_code == 412
    assert large.stands() == before
    assert receipt_of(large.push(LARGE, key="k"))["step"] == 2


@pytest.mark.parametrize("below", ["/params", "/state"])
def test_weights_and_state_cut_off_change_nothing(server_url: str, large: Subject, below: str) -> None:
    before = large.stands()
    with connected(server_url) as connection:
        headers = head("PUT", large.path + below, len(CONTENT), content_type="application/vnd.safetensors")
        connection.sendall(headers + CONTENT[: len(CONTENT) // 2])
    # Answered only when the turn is free again.
    assert receipt_of(large.push(LARGE, if_match='"1.0"'))["step"] == 2
    assert large.stands()["steps"][:1] == before["steps"]
    assert large.etag() == '"2.0"'


def test_an_upload_to_one_session_delays_no_other_and_no_pull(
    server_url: str, large: Subject, subject: Subject
) -> None:
    with connected(server_url) as connection:
        connection.sendall(push_head(large.path, len(CONTENT), idempotency_key="k") + CONTENT[:1_000_000])
        wait_until_in_flight(large, "k")
        for _ in range(3):
            assert subject.push().status_code == 200
            assert large.pull()["w"].shape == (500_000,)
            assert large.http.get(f"{large.path}/state").status_code == 200
        assert large.etag() == '"1.0"'
        connection.sendall(CONTENT[1_000_000:])
        assert status_of(connection) == 200
    assert large.etag() == '"2.0"'


def test_a_body_that_stalls_is_given_up_and_frees_the_session(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", IDLE_TIMEOUT_S="0.5") as server, http_client(server.url) as http:
        http.event_hooks = {"response": [Contract(http.get("/openapi.json").json()).check]}
        subject = Subject.create(http)
        content = tensor_file({"w": torch.zeros(3)})
        for method, below, kind in (
            ("POST", "/steps", "vnd.safetensors"),
            ("POST", "/steps", "json"),
            ("PUT", "/params", "vnd.safetensors"),
            ("PUT", "/state", "vnd.safetensors"),
            ("PATCH", "", "json"),
        ):
            before = subject.stands()
            with connected(server.url) as connection:
                headers = {"content_type": f"application/{kind}", "if_match": f'"{before["session"]["etag"]}"'}
                connection.sendall(head(method, subject.path + below, len(content), **headers) + content[:9])
                assert status_of(connection) == 408
            assert subject.stands() == before
            assert subject.push().status_code == 200
