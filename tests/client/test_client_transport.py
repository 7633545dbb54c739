"""Which transport is taken, and what httpx is handed."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

import optimd
from optimd._exchange import Request
from optimd._http1 import TensorTransport
from optimd._httpx import HttpxTransport
from optimd._settings import FLOOR_BYTES_PER_S, Settings
from optimd._transport import transport_for

SETTINGS = Settings.resolve("http://optimd.test/base", api_key="k", timeout=30.0, environ={})


def test_tensors_take_the_transport_made_for_them() -> None:
    assert isinstance(transport_for(SETTINGS, None), TensorTransport)


def test_a_proxy_is_httpxs_to_speak_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    assert isinstance(transport_for(SETTINGS, None), HttpxTransport)
    monkeypatch.setenv("NO_PROXY", "optimd.test")
    assert isinstance(transport_for(SETTINGS, None), TensorTransport)


def exchanged(request: Request) -> httpx.Request:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        return httpx.Response(204)

    HttpxTransport(SETTINGS, httpx.MockTransport(answer)).exchange(request)
    return seen[0]


def test_httpx_gets_the_whole_address_and_the_credentials() -> None:
    request = exchanged(Request("GET", "/v1/sessions/a%2Fb?after=1"))
    assert str(request.url) == "http://optimd.test/base/v1/sessions/a%2Fb?after=1"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("count", [10, 70_000, 3 * 2**20])
def test_httpx_gets_the_body_with_its_length(count: int) -> None:
    body = np.arange(count, dtype=np.uint32).astype(np.uint8)
    request = exchanged(Request("POST", "/", body=[memoryview(b"head"), body.data]))
    assert request.headers["content-length"] == str(count + 4)
    assert "transfer-encoding" not in request.headers
    assert request.content == b"head" + body.tobytes()


def test_httpx_is_given_time_that_grows_with_the_body_and_the_wait() -> None:
    body = [memoryview(bytes(FLOOR_BYTES_PER_S))]
    request = exchanged(Request("POST", "/", body=body, wait_s=5))
    assert request.extensions["timeout"]["read"] == 36.0


def test_the_environment_says_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMD_URL", "http://elsewhere.test")
    assert optimd.Client().url == "http://elsewhere.test"
