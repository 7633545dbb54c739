"""The courier's thread keeps off the core on which the program computes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from optimd._courier import Courier

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="about machines of several cores"
)


@pytest.fixture
def courier() -> Iterator[Courier]:
    courier = Courier()
    yield courier
    courier.close()


def cores_of(courier: Courier) -> set[int]:
    return courier.send(lambda: os.sched_getaffinity(0)).result(30)


def test_it_leaves_the_core_of_whoever_sends_and_comes_back_to_the_one_before(
    courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = os.sched_getaffinity(0)
    for core in sorted(every)[:2]:
        monkeypatch.setattr("optimd._cores._getcpu", lambda core=core: core)
        assert cores_of(courier) == every - {core}
    assert os.sched_getaffinity(0) == every


def test_it_leaves_the_core_of_whoever_has_waited(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    every = os.sched_getaffinity(0)
    first, second = sorted(every)[:2]
    monkeypatch.setattr("optimd._cores._getcpu", lambda: first)
    cores_of(courier)
    monkeypatch.setattr("optimd._cores._getcpu", lambda: second)
    courier.give_way()
    monkeypatch.setattr(courier, "give_way", lambda: None)
    assert cores_of(courier) == every - {second}


def test_a_program_that_is_kept_to_one_core_shares_it(courier: Courier) -> None:
    every = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(every)})
        assert cores_of(courier) == {min(every)}
    finally:
        os.sched_setaffinity(0, every)


def test_where_threads_cannot_be_moved_it_works_as_ever(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("optimd._cores._bind", refuse)
    assert courier.send(lambda: 7).result(30) == 7
    monkeypatch.setattr("optimd._cores._bind", None)
    assert courier.send(lambda: 8).result(30) == 8
