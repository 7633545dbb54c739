from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

import history_database
import reaching
from postgresql_server import PostgresqlServer
from server_process import ServerProcess


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport", choices=["tcp", "unix"], default="tcp", help="what servers of the tests listen on: %(choices)s"
    )
    parser.addoption(
        "--database",
        choices=["sqlite", "postgresql"],
        default="sqlite",
        help="where servers of the tests keep histories: %(choices)s; a server of the latter is started for it",
    )
    parser.addoption("--overlap", action="store_true", help="every RemoteOptimizer of the tests is made to overlap")
    parser.addoption(
        "--device",
        choices=["cpu", "posing", "cuda"],
        default="cpu",
        help="where the sessions of tests/service/api lie: on a GPU, or on what poses as one; one of %(choices)s",
    )


def pytest_configure(config: pytest.Config) -> None:
    reaching.transport = config.getoption("transport")
    reaching.device = config.getoption("device")
    history_database.kind = config.getoption("database")


def pytest_unconfigure() -> None:
    history_database.at_the_end.close()


@pytest.fixture
def over_tcp() -> None:
    """For tests of what only a port has."""
    if reaching.transport != "tcp":
        pytest.skip("about TCP itself")


@pytest.fixture(scope="session")
def on_host() -> None:
    """For tests of what sessions are only in the host's memory; before any server is started for them."""
    if reaching.device != "cpu":
        pytest.skip("about the host's memory")


@pytest.fixture
def on_sqlite() -> None:
    """For tests of what only SQLite does."""
    if history_database.kind != "sqlite":
        pytest.skip("about SQLite itself")


@pytest.fixture
def postgresql() -> PostgresqlServer:
    """For tests of what only PostgreSQL does, with the server that they may end and start."""
    if history_database.kind != "postgresql":
        pytest.skip("about PostgreSQL itself")
    return history_database.postgresql()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real server process, shared by every test that can share it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        with reaching.http_client(server.url) as http:
            assert http.get("/readyz").json()["status"] == "ready"
        yield server.url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"optimd-server at {s.url}", s.output()[-4000:]) for s in ServerProcess.running]
    return report
