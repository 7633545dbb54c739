from __future__ import annotations

from collections.abc import Generator, Iterator

import httpx
import pytest

from server_process import ServerProcess


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real server process, shared by every test that can share it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        assert httpx.get(f"{server.url}/readyz", trust_env=False).json()["status"] == "ready"
        yield server.url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"optimd-server at {s.url}", s.output()[-4000:]) for s in ServerProcess.running]
    return report
