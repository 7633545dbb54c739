"""F3, F4, F5, F18: connections break on either way, requests come twice, and clients die with their replies unread."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from faulted import LARGE_TASK, SMALL_TASK, Training, assert_refused

from crashing_server import CrashingServer
from faulty_proxy import Fate, FaultyProxy
from optimd import Client
from reaching import http_client
from torch_replay import Task

TASKS = pytest.mark.parametrize("task", [SMALL_TASK, LARGE_TASK], ids=lambda task: task.name)


@pytest.fixture
def proxy(server: CrashingServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(lambda: server.url) as proxy:
        yield proxy


def push_through(proxy: FaultyProxy, training: Training, fate: Fate) -> httpx.Response:
    """Push the next over a connection of its own, with this fate."""
    proxy.fates.append(fate)
    with http_client(proxy.url) as http:
        return training.push(http=http)


@TASKS
@pytest.mark.parametrize("crash", [False, True], ids=["server lives", "server dies"])
def test_a_reply_lost_after_the_commit_is_given_again(
    server: CrashingServer, proxy: FaultyProxy, task: Task, crash: bool
) -> None:
    training = Training(server, task).begin()
    training.train()
    with pytest.raises(httpx.TransportError):
        push_through(proxy, training, Fate("back", after=0))
    assert server.http.get(training.path).json()["step"] == 2
    if crash:
        server.start_again()
    before = training.seen()
    receipt = training.settle()
    assert receipt["duplicate"]
    assert training.seen() == before
    training.assert_nothing_lost()


@TASKS
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_upload_that_is_cut_changes_nothing_and_can_be_sent_again(
    server: CrashingServer, proxy: FaultyProxy, task: Task, share: float
) -> None:
    training = Training(server, task).begin()
    training.train()
    before = training.seen()
    with pytest.raises(httpx.TransportError):
        push_through(proxy, training, Fate("forth", after=int(share * len(training.body(2)))))
    assert training.seen() == before
    assert not training.settle()["duplicate"]
    training.assert_nothing_lost()


@TASKS
def test_of_pushes_that_come_twice_at_once_each_is_one_step(server: CrashingServer, task: Task) -> None:
    training = Training(server, task).begin()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            number = training.next
            replies = list(pool.map(training.push, [number] * 4))
            told = [reply.json()["receipt"] | {"duplicate": False} for reply in replies if reply.status_code == 200]
            assert told == [told[0]] * len(told) != []
            for reply in replies:
                if reply.status_code != 200:
                    assert_refused(reply, 409, "step-in-flight")
            assert training.settle()["duplicate"]
    training.assert_nothing_lost()


# Trains until it is killed: what it has sent it says before, and of the replies it says nothing.
TRAINER = """
import sys
import numpy as np
from optimd import Client

url, session_id = sys.argv[1:]
with Client(url) as client:
    session = client.session(session_id)
    for number in range(session.refresh()["step"] + 1, 10_000):
        print(number, flush=True)
        grads = {"w": np.full((30, 40), number, np.float32), "b": np.full(40, -number, np.float32)}
        session.step(grads, loss=float(number))
"""


def test_a_client_that_is_killed_between_sending_and_reading_goes_on_from_the_servers_step(
    server: CrashingServer,
) -> None:
    with Client(server.url) as client:
        zeros = {name: np.zeros(shape, np.float32) for name, shape in SMALL_TASK.shapes.items()}
        session = client.create_session("sgd", params=zeros, lr=0.5)
        step = 0
        for life in range(3):
            trainer = subprocess.Popen(
                [sys.executable, "-c", TRAINER, server.url, session.id], stdout=subprocess.PIPE, text=True
            )
            assert trainer.stdout is not None
            first = int(trainer.stdout.readline())
            assert first > step  # where the server stands, which may have taken one more since
            for line in trainer.stdout:
                if int(line) == first + 5 + life:  # its gradients are on their way
                    break
            trainer.send_signal(signal.SIGKILL)
            trainer.communicate()
            step = session.refresh()["step"]
            assert step >= first + 4
        weights, step = session.pull()["b"], int(str(session.etag).strip('"').partition(".")[0])
    # lr × (1 + 2 + … + step): every step is there once.
    assert weights == pytest.approx([0.25 * step * (step + 1)] * 40)
