from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_service import FakeService

import optimd

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPTIMD_URL", "OPTIMD_API_KEY", "OPTIMD_TIMEOUT", "OPTIMD_RETRIES", "OPTIMD_CONNECTIONS", *PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture(params=["socket", "httpx"])
def client(request: pytest.FixtureRequest, service: FakeService) -> Iterator[optimd.Client]:
    """The client over each blocking transport."""
    if request.param == "httpx":
        with optimd.Client("http://optimd.test", transport=service.transport()) as client:
            yield client
    else:
        with service.serving() as url, optimd.Client(url) as client:
            yield client


@pytest.fixture
def remote(
    server_url: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> Iterator[Callable[..., optimd.RemoteOptimizer]]:
    """Makes RemoteOptimizers on the real server, under `--overlap` overlapping ones; they end with the test."""
    monkeypatch.setenv("OPTIMD_URL", server_url)
    made: list[optimd.RemoteOptimizer] = []
    chosen = {"overlap": True} if pytestconfig.getoption("overlap") else {}
    if chosen:  # the models of the tests would fill no bucket of the usual size
        monkeypatch.setattr("optimd._torch_buckets.BUCKET_BYTES", 64)

    def make(*args: Any, **kwargs: Any) -> optimd.RemoteOptimizer:
        made.append(optimd.RemoteOptimizer(*args, **(chosen | kwargs)))
        return made[-1]

    yield make
    with optimd.Client(server_url) as client:
        for session_id in {opt.session.id for opt in made} & {info["id"] for info in client.sessions()}:
            client.session(session_id).delete()
    for opt in made:
        opt.close()
