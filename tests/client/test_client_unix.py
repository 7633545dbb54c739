"""Servers on a Unix socket: every client reaches them, and what cannot be reached is said."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_service import FakeService
from typer.testing import CliRunner

import optimd
import reaching
from optimd import errors
from optimd._exchange import Request
from optimd._http1 import TensorTransport
from optimd._settings import Settings
from optimd._transport import transport_for
from optimd.cli import app


@pytest.fixture
def url(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(reaching, "transport", "unix")
    with service.serving() as url:
        yield url


def settings(url: str) -> Settings:
    return Settings.resolve(url, environ={})


def test_a_path_may_be_written_in_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTIMD_URL", f"unix:{tmp_path}/s")
    assert {optimd.Client(given).url for given in (None, f"unix://{tmp_path}/s", "unix:s")} == {f"unix:{tmp_path}/s"}


@pytest.mark.parametrize("url", ["unix:", "unix:/", "unix://", "unix://host/s", "unix:/s\n", "unix:/s\0"])
def test_a_url_without_a_usable_path_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidSetting, match="OPTIMD_URL must look like unix:/path"):
        settings(url)


def test_a_path_longer_than_a_sockets_address_is_refused() -> None:
    longest = "/" + "s" * 106
    assert settings(f"unix:{longest}").socket_path == longest
    for longer in (longest + "s", "/" + "é" * 54):
        with pytest.raises(errors.InvalidSetting, match="107 bytes"):
            settings(f"unix:{longer}")


def test_a_python_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("socket.AF_UNIX")
    with pytest.raises(errors.InvalidSetting, match="use http://"):
        settings("unix:/s")


def test_the_blocking_client_and_the_command_reach_it(url: str, service: FakeService) -> None:
    with optimd.Client(url) as client:
        assert client.session("s1").id == "s1"
    assert service.seen[0].headers["host"] == "localhost"
    assert "s1" in CliRunner().invoke(app, ["--url", url, "sessions"]).stdout


async def test_the_async_client_reaches_it(url: str, service: FakeService) -> None:
    async with optimd.AsyncClient(url) as client:
        assert (await client.session("s1")).id == "s1"
    assert service.seen[0].headers["host"] == "localhost"


def test_a_change_of_directory_leaves_the_server_where_it_was(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(settings(url).socket_path or "")
    monkeypatch.chdir(path.parent)
    with optimd.Client(f"unix:{path.name}") as client:
        monkeypatch.chdir(tmp_path)
        assert client.session("s1").id == "s1"


async def test_no_proxy_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "UNIX_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    transport = transport_for(settings(url), None)
    assert isinstance(transport, TensorTransport)
    assert transport.exchange(Request("GET", "/v1/sessions/s1")).status == 200
    async with optimd.AsyncClient(url) as client:
        assert (await client.session("s1")).id == "s1"


def test_a_caller_may_bring_a_transport_of_his_own(service: FakeService) -> None:
    with optimd.Client("unix:/run/optimd.sock", transport=service.transport()) as client:
        assert client.session("s1").id == "s1"


def test_the_kernel_is_asked_for_room(url: str) -> None:
    transport = TensorTransport(settings(url))
    transport.exchange(Request("GET", "/v1/sessions/s1"))
    (connection,) = transport._idle
    # Linux doubles what it is asked for, up to what it allows.
    allowed = [int(Path("/proc/sys/net/core", name).read_text()) for name in ("wmem_max", "rmem_max")]
    room = [connection._socket.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    transport.close()
    assert room == [2 * min(2**20, most) for most in allowed]


def missing(folder: Path) -> str:
    return f"unix:{folder}/s"


def stale(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/s")
    return f"unix:{folder}/s"


def a_file(folder: Path) -> str:
    (folder / "s").write_text("")
    return f"unix:{folder}/s"


@pytest.mark.parametrize("made", [missing, stale, a_file])
async def test_a_socket_that_nobody_listens_on_is_not_connected(tmp_path: Path, made: Callable[[Path], str]) -> None:
    url = made(tmp_path)
    with optimd.Client(url, retries=0) as client, pytest.raises(errors.NotConnected) as blocking:
        client.health()
    async with optimd.AsyncClient(url, retries=0) as client:
        with pytest.raises(errors.NotConnected) as awaited:
            await client.health()
    for caught in (blocking, awaited):
        assert str(caught.value).startswith(f"No connection to {url}: ")
        assert f"started with `--uds {tmp_path}/s`" in str(caught.value)
