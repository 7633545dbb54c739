"""Turns and threads, where timing over HTTP could not be arranged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from optimd_service.errors import PreconditionRequired, StaleStep, StepInFlight
from optimd_service.session.arithmetic import Arithmetic, Lane
from optimd_service.session.preconditions import Match, Precondition
from optimd_service.session.turns import Turns
from optimd_service.types import Version


@pytest.fixture
def lane() -> Iterator[Lane]:
    threads = torch.get_num_threads()
    arithmetic = Arithmetic(2)
    yield arithmetic.small
    arithmetic.close()
    torch.set_num_threads(threads)


def turns_at(version: Version, committed: frozenset[str] = frozenset()) -> Turns:
    return Turns(version=lambda: version, known=lambda key: key in committed)


async def waiting() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_turns_are_given_in_the_order_asked() -> None:
    turns, taken = turns_at(Version(0, 0)), []

    async def push(key: str) -> None:
        async with turns.push(Precondition(None, key)):
            await waiting()
            taken.append(key)

    await asyncio.gather(*(push(key) for key in "abcde"))
    assert taken == list("abcde")


async def test_a_push_that_is_cancelled_while_it_waits_frees_its_key() -> None:
    turns = turns_at(Version(0, 0))

    async def push() -> None:
        async with turns.push(Precondition(None, "k")):
            pass

    async with turns.taking:
        task = asyncio.create_task(push())
        await waiting()
        with pytest.raises(StepInFlight):
            await push()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await push()


async def test_a_push_that_fails_frees_the_turn_and_its_key() -> None:
    turns = turns_at(Version(0, 0))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with turns.push(Precondition(None, "k")):
                raise ZeroDivisionError
    assert not turns.taking.locked()


async def test_a_push_is_checked_before_it_waits_and_again_after() -> None:
    stands = [Version(0, 0)]
    turns = Turns(version=lambda: stands[0], known=lambda _: False)
    with pytest.raises(PreconditionRequired):
        await turns.push(Precondition(None, None)).__aenter__()

    async def push(match: str) -> None:
        async with turns.push(Precondition(Match.read(match), None)):
            pass

    async with turns.taking:
        with pytest.raises(StaleStep):
            await push('"7"')
        task = asyncio.create_task(push('"0"'))
        await waiting()
        assert not task.done()
        stands[0] = Version(1, 0)
    with pytest.raises(StaleStep):
        await task


async def test_a_committed_key_is_let_through_however_stale_its_match() -> None:
    turns = turns_at(Version(5, 0), frozenset({"k"}))
    async with turns.push(Precondition(Match.read('"0"'), "k")):
        assert turns.taking.locked()


async def test_what_came_in_parts_is_forgotten_when_the_version_is_another() -> None:
    stands = [Version(0, 0)]
    turns = Turns(version=lambda: stands[0], known=lambda _: False)
    async with turns.push(Precondition(None, "k"), whole=False):
        begun = turns.contribution("c")
        assert turns.contribution("c") is begun
    for stands[0] in (Version(1, 0), Version(1, 1)):
        async with turns.push(Precondition(None, "k"), whole=False):
            assert turns.contribution("c") is not begun
            begun = turns.contribution("c")


async def test_what_a_thread_raises_is_raised_where_it_is_awaited(lane: Lane) -> None:
    assert await lane.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await lane.run(divmod, 7, 0)


async def test_a_cancelled_caller_waits_for_what_its_thread_writes(lane: Lane) -> None:
    started, go, written = threading.Event(), threading.Event(), []

    def write() -> None:
        started.set()
        go.wait(30)
        written.append(True)

    task = asyncio.create_task(lane.run(write))
    await asyncio.to_thread(started.wait, 30)
    task.cancel()
    await waiting()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written == [True]
