"""What outlives a server, and what a server needs to start."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from api_subject import SAFETENSORS, WEIGHTS, Subject, assert_refused
from openapi_contract import Contract
from typer.testing import CliRunner, Result

import history_database
from optimd_service.cli import app
from raw_safetensors import tensor_file
from reaching import connections, http_client
from server_process import ServerProcess


@contextmanager
def connected(server: ServerProcess) -> Iterator[httpx.Client]:
    with http_client(server.url) as http:
        http.event_hooks = {"response": [Contract(http.get("/openapi.json").json()).check]}
        yield http


@pytest.fixture(autouse=True)
def no_server_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ought to fail must not serve in the test's own process instead."""
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("it serves"))


def command(*arguments: str | Path, **settings: str) -> Result:
    environment = {f"OPTIMD_{name}": value for name, value in settings.items()}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def assert_failed(result: Result, said: str) -> None:
    """The command ended with 1 and told why on one line."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [("x" * 120, "too long"), ("nowhere/s", "no folder"), ("file", "no socket"), ("taken", "listens on")],
)
def test_a_socket_that_cannot_be_made_or_is_anothers_is_refused(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "taken"))
        other.listen()
        assert_failed(command("run", "--uds", tmp_path / path, "--data", tmp_path / "data"), said)
    assert (tmp_path / "taken").is_socket()


def test_a_session_is_lost_with_its_server_and_its_history_is_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ServerProcess(data) as server, connected(server) as http:
        subject = Subject.create(http, name="kept", durability="memory")
        subject.push(loss="0.5")
        before = subject.stands()
        assert_failed(command("run", "--port", "0", "--data", data), "Another server runs on")
        assert subject.stands() == before
    with ServerProcess(data) as server, connected(server) as http:
        lost = Subject(http, subject.path)
        assert lost.info()["status"] == "lost"
        assert lost.info()["name"] == "kept"
        assert lost.info()["step"] == len(before["steps"]) > 0
        assert lost.steps() == before["steps"]
        assert [event["kind"] for event in lost.events()] == ["created", "lost"]
        content, headers = tensor_file(WEIGHTS), {**SAFETENSORS, "If-Match": '"1.0"'}
        for method, below in (
            ("POST", "/steps"),
            ("GET", "/params"),
            ("PUT", "/params"),
            ("GET", "/state"),
            ("PUT", "/state"),
        ):
            reply = http.request(method, lost.path + below, content=content, headers=headers)
            assert_refused(reply, 410, "session-lost")
        assert_refused(http.patch(lost.path, json={"name": "x"}), 410, "session-lost")
        assert http.get("/v1/sessions").json()["sessions"] == []
        (row,) = http.get("/v1/sessions?status=lost").json()["sessions"]
        assert (row["name"], row["status"], row["step"]) == ("kept", "lost", len(before["steps"]))
        assert len(http.get("/v1/sessions?status=all").json()["sessions"]) == 1
        assert http.delete(lost.path).status_code == 204
        assert_refused(http.get(lost.path), 404, "session-not-found")
        assert http.get("/v1/sessions?status=all").json()["sessions"] == []


def test_a_configured_database_is_migrated_on_demand_alone(tmp_path: Path) -> None:
    url = history_database.empty_url(tmp_path / "elsewhere.sqlite3")
    data = tmp_path / "data"
    assert_failed(command("run", "--port", "0", "--data", data, DATABASE_URL=url), "optimd-server migrate")
    migrated = command("migrate", "--data", data, DATABASE_URL=url)
    assert (migrated.exit_code, migrated.stdout) == (0, "The history database is up to date.\n")
    with ServerProcess(data, DATABASE_URL=url) as server, connected(server) as http:
        assert Subject.create(http).push().status_code == 200
    assert not (data / "history.sqlite3").exists()


def test_an_empty_directory_is_migrated(tmp_path: Path) -> None:
    for _ in range(2):
        assert command("migrate", "--data", tmp_path / "new").exit_code == 0
    assert (tmp_path / "new" / "history.sqlite3").exists()


@pytest.mark.parametrize("setting", ["PORT", "THREADS", "IDLE_TIMEOUT_S", "MEMORY_LIMIT_BYTES"])
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, setting: str) -> None:
    assert_failed(command("run", "--data", tmp_path, **{setting: "-1"}), setting.lower())


def test_who_waits_for_a_step_is_answered_when_the_server_ends(tmp_path: Path) -> None:
    answered = threading.Event()
    with ServerProcess(tmp_path / "data") as server, http_client(server.url) as http:
        subject = Subject.create(http)
        headers = {"If-None-Match": '"0.0"', "Prefer": "wait=60"}

        def wait() -> None:
            with http_client(server.url, timeout=90) as waiting:
                if waiting.get(f"{subject.path}/params", headers=headers).status_code == 304:
                    answered.set()

        poll = threading.Thread(target=wait)
        poll.start()
        # The server has the poll in hand once it holds two connections; asking keeps ours open.
        while connections(server.url) < 2:
            http.get("/healthz")
    poll.join(30)
    assert answered.is_set()


def test_training_goes_on_while_the_history_database_does_not_answer(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server, http_client(server.url) as http:
        subject = Subject.create(http)
        subject.push()
        assert len(subject.steps()) == 1
        with history_database.away(tmp_path / "data" / "history.sqlite3"):
            assert subject.push(if_match='"1"').status_code == 200
            while (ready := http.get("/readyz")).status_code == 200:
                pass
            assert_refused(ready, 503, "history-unavailable", failing=True, dropped=0)
            assert subject.push(if_match='"2"').status_code == 200
            assert_refused(http.get(f"{subject.path}/steps"), 503, "history-unavailable")
        while http.get("/readyz").status_code == 503:
            pass
        assert [row["step"] for row in subject.steps()] == [1, 2, 3]


def test_every_step_is_recorded_once_when_the_database_crashes_while_steps_are_taken(tmp_path: Path) -> None:
    place, crashes = tmp_path / "data" / "history.sqlite3", 3
    with ServerProcess(tmp_path / "data") as server, http_client(server.url) as http, ThreadPoolExecutor() as pool:
        subject = Subject.create(http)
        over = threading.Event()

        def train() -> int:
            taken = 0
            while not over.is_set():
                assert subject.push(if_match=f'"{taken}"').status_code == 200
                taken += 1
            return taken

        training = pool.submit(train)
        try:
            for _ in range(crashes):  # in this thread: what it starts ends with the thread that did
                with history_database.away(place):
                    time.sleep(0.3)  # in which steps are taken; how many does not matter
        finally:
            over.set()
        taken = training.result()
        while http.get("/readyz").status_code == 503:
            pass
        assert [row["step"] for row in subject.steps(limit=10_000)] == list(range(1, taken + 1))
        assert [event["kind"] for event in subject.events()] == ["created"]


@pytest.mark.parametrize("url", ["mysql://host/name", "postgresql://u@127.0.0.1:1/name", "sqlite:////nowhere/h.db"])
def test_a_database_that_cannot_be_used_is_refused_in_a_line(tmp_path: Path, url: str) -> None:
    for arguments in (["run", "--port", "0", "--data", tmp_path], ["migrate"]):
        assert_failed(command(*arguments, DATABASE_URL=url), "OPTIMD_DATABASE_URL")


def test_the_command_says_what_is_not_installed() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from optimd_service.entry import main; main()"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 1
    assert answer.stderr.startswith("optimd-server needs uvicorn, which is not installed: pip install 'optimd[server]'")
