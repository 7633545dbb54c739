"""F16: the clock is set back and forth."""

from __future__ import annotations

from faulted import SMALL_TASK, Training

from crashing_server import CrashingServer
from torch_replay import Replay

HOUR_S = 3600.0
CLOCKS = [HOUR_S, -HOUR_S, 24 * HOUR_S, 0.0]


def test_steps_follow_one_another_whatever_the_clock_says(server: CrashingServer) -> None:
    training = Training(server, checkpoint={"steps": 4}).begin()
    for server.clock_s in CLOCKS:
        server.start_again()
        training.train(3)
        training.assert_nothing_lost()
        Training(server).begin().train()


def test_history_forgets_what_a_crash_took_though_the_clock_was_ahead(server: CrashingServer) -> None:
    training, kept = Training(server, durability="checkpoint", checkpoint={"seconds": 1e6}).begin(), []
    for number, server.clock_s in enumerate(CLOCKS):
        assert training.push(100 + number).status_code == 200
        training.rows()  # it is written, and its step is lost
        server.start_again()
        assert training.push(200 + number).status_code == 200
        kept.append(200 + number)
        assert [row["loss"] for row in training.rows()] == kept
        assert server.http.post(f"{training.path}/checkpoints", json={}).status_code == 201
        server.start_again()
        Replay.of(SMALL_TASK, kept).assert_equal(training.tensors("/params"), training.tensors("/state"))
