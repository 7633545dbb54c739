"""I6: sessions of weaker modes lose what they publish, no more, and say so."""

from __future__ import annotations

import pytest
import torch
from faulted import SMALL_TASK, Training, assert_refused

from crashing_server import CrashingServer, wait_for
from torch_replay import Replay


@pytest.fixture
def by_checkpoint(server: CrashingServer) -> Training:
    """A session whose checkpoints are made when they are asked for."""
    return Training(server, durability="checkpoint", checkpoint={"seconds": 1e6}).begin()


def test_a_crash_takes_a_session_back_to_the_step_that_receipts_named_and_no_further(
    server: CrashingServer, by_checkpoint: Training
) -> None:
    training = by_checkpoint
    training.train(3)
    assert server.http.post(f"{training.path}/checkpoints", json={}).status_code == 201
    kept, etags = (training.tensors("/params"), training.tensors("/state")), {training.seen()[0]}
    for _ in range(2):
        assert [training.settle()["durable_step"] for _ in range(4)] == [3] * 4
        training.rows()  # of steps that will be lost, too, are written
        server.start_again()
        for found, before in zip((training.tensors("/params"), training.tensors("/state")), kept, strict=True):
            assert all(torch.equal(found[name], before[name]) for name in before)
        etag = training.seen()[0]
        assert etag.startswith('"3.')
        assert etag not in etags, "of two states"
        etags.add(etag)
        del training.acknowledged[3:]
        training.assert_nothing_lost()
    training.train(2)
    training.assert_nothing_lost()


def test_a_server_that_is_asked_to_end_loses_no_step_of_a_session_that_is_kept_by_checkpoints(
    server: CrashingServer, by_checkpoint: Training
) -> None:
    by_checkpoint.train(3)
    server.stop()
    server.start()
    by_checkpoint.train()
    by_checkpoint.assert_nothing_lost()


def test_history_shows_no_step_that_a_crash_took_in_place_of_one_that_came_after_it(
    server: CrashingServer, by_checkpoint: Training
) -> None:
    training, kept = by_checkpoint, []
    for life in range(4):
        assert training.push(100 + life).status_code == 200
        training.rows()  # it is written, and its step is lost
        server.start_again()
        assert training.push(200 + life).status_code == 200
        assert server.http.post(f"{training.path}/checkpoints", json={}).status_code == 201
        kept.append(200 + life)  # and its row may not be written yet
        server.start_again()
        Replay.of(SMALL_TASK, kept).assert_equal(training.tensors("/params"), training.tensors("/state"))
        for row in training.rows():
            assert row["loss"] == kept[row["step"] - 1], row


def test_steps_taken_while_a_checkpoint_is_made_are_in_the_next_though_none_follows_them(
    server: CrashingServer,
) -> None:
    server.start_again("checkpoint.before_sync=sleep:1000")
    training = Training(server, durability="checkpoint", checkpoint={"steps": 1}).begin()
    training.train()
    assert wait_for(lambda: list(training.folder.glob("checkpoint-*2.safetensors.tmp")), 30)
    training.train()
    assert wait_for(lambda: list(training.folder.glob("checkpoint-*3.safetensors")), 30)


def test_a_session_in_memory_promises_nothing_and_is_named_lost(server: CrashingServer) -> None:
    training = Training(server, durability="memory").begin()
    assert training.settle()["durable_step"] == 0
    training.rows()  # it is in the history
    server.start_again()
    assert_refused(training.push(), 410, "session-lost")
