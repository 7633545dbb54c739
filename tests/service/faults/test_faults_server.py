"""F12 to F15: history catches up after any crash, one server holds a directory, the host's memory is full."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from faulted import LARGE_TASK, SMALL_TASK, Training, assert_refused

import history_database
from crashing_server import CrashingServer, wait_for
from raw_safetensors import tensor_file
from torch_replay import Task

TASKS = pytest.mark.parametrize("task", [SMALL_TASK, LARGE_TASK], ids=lambda task: task.name)


def test_steps_whose_rows_were_still_in_memory_are_in_the_history_after_a_crash(server: CrashingServer) -> None:
    training = Training(server).begin()
    for _ in range(3):
        training.train(10)
        server.start_again()
        training.assert_nothing_lost()


def test_rows_that_the_database_did_not_take_are_there_after_a_crash_though_checkpoints_came_behind_them(
    server: CrashingServer, tmp_path: Path
) -> None:
    training = Training(server, checkpoint={"steps": 2, "keep": 1}).begin()
    training.train()
    training.assert_nothing_lost()
    with history_database.away(tmp_path / "data" / "history.sqlite3"):
        for _ in range(5):
            training.train(2)
            assert wait_for(lambda: _newest_checkpoint(training) >= len(training.acknowledged) - 1, 30)
        server.crash()
    server.start()
    training.train(2)
    training.assert_nothing_lost()


def test_a_journal_is_given_up_behind_a_checkpoint_once_its_rows_are_written(server: CrashingServer) -> None:
    training = Training(server, checkpoint={"steps": 1, "keep": 1}).begin()
    for _ in range(10):
        training.train()
        training.rows()  # which waits for all that was recorded before
        assert wait_for(lambda: _newest_checkpoint(training) == len(training.acknowledged), 30)
    assert wait_for(lambda: len(list(training.folder.glob("journal-*"))) <= 3, 30)


def _newest_checkpoint(training: Training) -> int:
    """The number of its record."""
    return max(int(file.stem.partition("-")[2]) for file in training.folder.glob("checkpoint-*.safetensors"))


def test_a_second_server_on_a_directory_ends_and_the_first_goes_on(server: CrashingServer, tmp_path: Path) -> None:
    training = Training(server).begin()
    training.train()
    second = CrashingServer(tmp_path / "data")
    second._log = tmp_path / "second.log"
    assert not second.begin()
    assert second.code == 1
    assert "Another server runs on" in second.output()
    training.train()
    server.crash()
    with second:
        server.http = second.http
        training.train()
        training.assert_nothing_lost()


@TASKS
@pytest.mark.parametrize(
    ("point", "status", "slug"),
    [
        ("session.received", 507, "insufficient-memory"),
        ("session.before_update", 503, "step-undone"),
        ("session.mid_update", 503, "step-undone"),
    ],
)
def test_without_memory_in_the_middle_of_a_step_nothing_changes_and_training_goes_on(
    server: CrashingServer, task: Task, point: str, status: int, slug: str
) -> None:
    training = Training(server, task).begin()
    training.train(2)
    before = training.seen()
    server.start_again(f"{point}=memory@1")
    assert_refused(training.push(), status, slug)
    assert training.seen() == before
    assert not training.settle()["duplicate"]
    training.assert_nothing_lost()


@TASKS
def test_a_server_that_is_asked_to_end_during_an_upload_finishes_it(server: CrashingServer, task: Task) -> None:
    training = Training(server, task).begin()
    training.train()
    body, asked = tensor_file(task.grads(2), {"loss": "2"}), []

    def slowly() -> object:
        yield body[:1000]
        os.kill(server.pid, signal.SIGTERM)
        asked.append(wait_for(lambda: "Shutting down" in server.output(), 10))
        yield body[1000:]

    headers = {**training.headers(2), "Content-Length": str(len(body))}
    reply = server.http.post(f"{training.path}/steps", content=slowly(), headers=headers, params={"pull": "none"})
    assert asked == [True]
    assert reply.status_code == 200, reply.text
    training.acknowledged.append(2)
    server.await_end(30)
    assert server.code == 0
    server.start()
    training.assert_nothing_lost()
