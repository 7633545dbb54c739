"""Threads that share a piece of work are kept on different cores while they do, and on none afterwards."""

from __future__ import annotations

import os

import pytest

from optimd_service.session import cores

ALLOWED = os.sched_getaffinity(0)


def test_a_thread_stays_on_a_core_for_as_long_as_it_is_told_to() -> None:
    core = min(ALLOWED)
    with cores.staying_on(core):
        assert os.sched_getaffinity(0) == {core}
        assert cores.current() == core
    assert os.sched_getaffinity(0) == ALLOWED


def test_a_thread_keeps_off_a_core_where_there_is_another() -> None:
    core = min(ALLOWED)
    with cores.away_from(core):
        assert os.sched_getaffinity(0) == (ALLOWED - {core} or ALLOWED)
    assert os.sched_getaffinity(0) == ALLOWED


def test_a_thread_is_free_again_whatever_became_of_its_work() -> None:
    with pytest.raises(ZeroDivisionError), cores.staying_on(min(ALLOWED)):
        _ = 1 / 0
    assert os.sched_getaffinity(0) == ALLOWED


def test_a_core_that_is_not_known_binds_nobody() -> None:
    for binding in (cores.staying_on, cores.away_from):
        with binding(-1):
            assert os.sched_getaffinity(0) == ALLOWED
