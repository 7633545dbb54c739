from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from optimd_service.session.following import Following, Unfinished
from optimd_service.session.stepped import Stepped
from optimd_service.types import Version

STEPPED: Stepped = object()  # type: ignore[assignment]  # only handed on


def later(function: Any, *args: Any) -> threading.Thread:
    thread = threading.Timer(0.05, function, args)
    thread.start()
    return thread


async def test_weights_are_ready_up_to_the_first_part_that_is_missing() -> None:
    following, params = Following(), torch.zeros(10)
    following.begin(params, Version(1, 0))
    following.wrote(params[:4])
    following.ready(4)
    following.wrote(params[6:])
    order = []

    def write() -> None:
        order.append("written")
        following.wrote(params[4:6])

    thread = later(write)
    following.ready(5)
    order.append("ready")
    following.ready(10)
    thread.join()
    assert order == ["written", "ready"]


async def test_what_no_update_writes_is_ready_when_the_step_has_ended() -> None:
    following = Following()
    following.begin(torch.zeros(10), Version(1, 0))
    thread = later(following.end, STEPPED)
    following.ready(10)
    assert following.stepped() is STEPPED
    thread.join()


@pytest.mark.parametrize("wait", [lambda following: following.ready(1), lambda following: following.stepped()])
async def test_whoever_waits_for_an_update_that_fails_is_told(wait: Any) -> None:
    following = Following()
    following.begin(torch.zeros(10), Version(1, 0))
    thread = later(following.fail)
    with pytest.raises(Unfinished):
        wait(following)
    thread.join()


async def test_the_event_loop_is_told_of_the_beginning() -> None:
    following = Following()
    thread = later(following.begin, torch.zeros(1), Version(3, 1))
    await following.begun.wait()
    assert following.version == Version(3, 1)
    thread.join()
