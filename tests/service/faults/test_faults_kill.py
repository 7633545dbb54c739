"""F1, F2: the server is killed at every point on the way of a push, and on the way of a checkpoint."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest
from faulted import LARGE_TASK, SMALL_TASK, Training

from crashing_server import CrashingServer
from optimd_service.store.failpoints import POINTS
from torch_replay import Task

BEFORE_A_COMMIT = {
    "small": ["session.received", "disk.write", "journal.before_write"],
    "large": ["session.received", "journal.mid_payload", "journal.before_meta", "journal.before_head"],
}
OF_AN_UPDATE = ["session.before_update", "session.mid_update"]
# The page cache outlives the process: what is written and not synced is there.
OF_A_COMMIT = ["journal.before_sync", "disk.sync", "journal.after_sync", "journal.after_mark", "session.before_publish"]
AFTER_A_COMMIT = ["session.after_commit", "session.before_reply"]
OF_A_CHECKPOINT = [point for point in POINTS if point.startswith("checkpoint.")]


@pytest.mark.parametrize("task", [SMALL_TASK, LARGE_TASK], ids=lambda task: task.name)
def test_a_push_whose_server_is_killed_anywhere_on_its_way_is_wholly_there_or_absent_and_its_retry_settles_it(
    server: CrashingServer, task: Task
) -> None:
    training = Training(server, task).begin()
    training.train()
    for point in [*BEFORE_A_COMMIT[task.name], *OF_AN_UPDATE, *OF_A_COMMIT, *AFTER_A_COMMIT]:
        before = training.seen()
        server.start_again(f"{point}=kill@1")
        with pytest.raises(httpx.TransportError):
            training.push()
        server.await_end()
        server.start_again()
        committed = training.seen() != before
        assert committed == (point in OF_A_COMMIT + AFTER_A_COMMIT), point
        receipt = training.settle()
        assert receipt["duplicate"] == committed, point
        assert training.push(training.next - 1).json()["receipt"] == receipt | {"duplicate": True}
    training.assert_nothing_lost()


def test_a_server_that_is_killed_while_it_does_steps_again_does_them_at_the_next_start(server: CrashingServer) -> None:
    training = Training(server).begin()
    training.train(3)
    before = training.seen()
    for nth in (1, 3):
        server.crash()
        server.failing = f"session.replay=kill@{nth}"
        server.begin()
        server.await_end()
        server.start_again()
        assert training.seen() == before
    training.assert_nothing_lost()


@pytest.mark.parametrize("task", [SMALL_TASK, LARGE_TASK], ids=lambda task: task.name)
def test_a_checkpoint_whose_server_is_killed_anywhere_on_its_way_is_whole_or_none_and_no_step_is_lost(
    server: CrashingServer, task: Task
) -> None:
    training = Training(server, task, checkpoint={"steps": 1, "keep": 1}).begin()
    for point in [*OF_A_CHECKPOINT, "journal.before_unlink", "journal.before_segment", "journal.before_rename"]:
        server.start_again(f"{point}=kill@1")
        while server.lives:  # a push is answered before its checkpoint is made
            with suppress(httpx.TransportError):
                training.settle()
        server.await_end()
        left = [*training.folder.glob("*.tmp"), *training.folder.glob("*.new")]
        server.start_again()
        training.settle()
        assert not any(unfinished.exists() for unfinished in left)
        training.assert_nothing_lost()
