"""Steps go on while a checkpoint is written, and it holds the state of the moment at which it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpointed import BLOCKS, assert_holds, copied, large, overwrite, save

from optimd_service.errors import DiskFull, InsufficientMemory
from optimd_service.store import failpoints, saving
from optimd_service.store.checkpoint import BLOCK
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.store.device import Budget
from optimd_service.store.disk import File
from optimd_service.store.saving import Saving


class Gate:
    """Lets through as many writes to the disk as it is told to."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)

    def let(self, writes: int) -> None:
        self._permits.release(writes)

    def passed(self) -> None:
        self.waiting.release()
        assert self._permits.acquire(timeout=30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Every write of a checkpoint waits at it, the header's first."""
    gate = Gate()

    class GatedFile(File):
        def write(self, at: int, piece: memoryview) -> None:
            gate.passed()
            super().write(at, piece)

    monkeypatch.setattr(saving, "File", GatedFile)
    return gate


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


ALL = 100


def settled_late(thread: ThreadPoolExecutor, saving_: Saving) -> Future[None]:
    """A settling that waits for the disk."""
    settling = thread.submit(saving_.settle)
    with pytest.raises(TimeoutError):
        settling.result(timeout=0.05)
    return settling


def free(budget: Budget, nbytes: int) -> bool:
    try:
        budget.take(nbytes)
    except InsufficientMemory:
        return False
    budget.give_back(nbytes)
    return True


def test_without_memory_to_spare_the_buffers_are_free_when_they_are_on_disk(
    tmp_path: Path, gate: Gate, thread: ThreadPoolExecutor
) -> None:
    checkpoints, working = Checkpoints(tmp_path), large()
    wanted, running = copied(working), save(checkpoints, 1, working)
    done = thread.submit(running.run)
    gate.let(BLOCKS)  # the header, and all blocks but the last
    settling = settled_late(thread, running)
    gate.let(ALL)
    settling.result(timeout=30)
    overwrite(working)
    assert done.result(timeout=30)
    assert_holds(checkpoints.load(1), wanted)


def test_with_memory_to_spare_the_buffers_are_free_before_anything_is_on_disk(
    tmp_path: Path, gate: Gate, thread: ThreadPoolExecutor
) -> None:
    budget = Budget(BLOCKS * BLOCK)
    checkpoints, working = Checkpoints(tmp_path, budget), large()
    wanted, running = copied(working), save(checkpoints, 1, working)
    running.settle()
    overwrite(working)
    assert not free(budget, 1)
    done = thread.submit(running.run)
    gate.let(ALL)
    assert done.result(timeout=30)
    assert_holds(checkpoints.load(1), wanted)
    assert free(budget, BLOCKS * BLOCK)


def test_what_does_not_fit_into_spare_memory_is_waited_for(
    tmp_path: Path, gate: Gate, thread: ThreadPoolExecutor
) -> None:
    budget = Budget(BLOCK + 1)
    checkpoints, working = Checkpoints(tmp_path, budget), large()
    wanted, running = copied(working), save(checkpoints, 1, working)
    done = thread.submit(running.run)
    settling = settled_late(thread, running)
    assert not free(budget, BLOCK)
    gate.let(BLOCKS)  # so the block that is copied is not on disk
    settling.result(timeout=30)
    overwrite(working)
    gate.let(ALL)
    assert done.result(timeout=30)
    assert_holds(checkpoints.load(1), wanted)
    assert free(budget, BLOCK + 1)


def test_a_block_that_the_disk_is_taking_is_waited_for_and_not_copied(
    tmp_path: Path, gate: Gate, thread: ThreadPoolExecutor
) -> None:
    budget = Budget(BLOCKS * BLOCK)
    checkpoints, working = Checkpoints(tmp_path, budget), large()
    wanted, running = copied(working), save(checkpoints, 1, working)
    done = thread.submit(running.run)
    gate.let(1)
    for _ in range(2):  # the header has been let through; the first block is being written
        assert gate.waiting.acquire(timeout=30)
    settling = settled_late(thread, running)
    assert free(budget, BLOCK)
    gate.let(1)
    settling.result(timeout=30)
    overwrite(working)
    gate.let(ALL)
    assert done.result(timeout=30)
    assert_holds(checkpoints.load(1), wanted)


@pytest.mark.parametrize("spare_blocks", [0, 1, BLOCKS])
def test_steps_go_on_and_the_checkpoint_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, thread: ThreadPoolExecutor, spare_blocks: int
) -> None:
    checkpoints, working = Checkpoints(tmp_path, Budget(spare_blocks * BLOCK)), large()
    for seq in range(1, 6):
        wanted, running = copied(working), save(checkpoints, seq, working)
        done = thread.submit(running.run)
        for _ in range(seq):
            running.settle()
            working.params.add_(1)
            working.state["exp_avg"].mul_(-0.5)
        assert done.result(timeout=30)
        assert_holds(checkpoints.load(seq), wanted)


def test_what_a_step_changes_beside_the_buffers_does_not_get_in(tmp_path: Path) -> None:
    checkpoints, working = Checkpoints(tmp_path), large()
    working.numbers = {"default": {"d": 0.5}}
    running = save(checkpoints, 1, working)
    working.numbers["default"]["d"] = 0.25
    working.started.add(("default", "exp_avg"))
    working.updates += 1
    del working.state["exp_avg"]
    running.run()
    found = checkpoints.load(1).working
    assert (found.numbers, found.started, found.updates) == ({"default": {"d": 0.5}}, set(), 1)
    assert found.state.keys() == {"exp_avg"}


def test_a_cancelled_checkpoint_leaves_no_file_and_no_memory(
    tmp_path: Path, gate: Gate, thread: ThreadPoolExecutor
) -> None:
    budget = Budget(BLOCK)
    checkpoints = Checkpoints(tmp_path, budget)
    running = save(checkpoints, 1, large())
    done = thread.submit(running.run)
    settling = settled_late(thread, running)
    cancelling = thread.submit(running.cancel)
    settling.result(timeout=30)
    gate.let(ALL)
    cancelling.result(timeout=30)
    assert done.result(timeout=30) is None
    assert (list(tmp_path.iterdir()), free(budget, BLOCK)) == ([], True)


def test_a_checkpoint_cancelled_before_it_runs_never_runs(tmp_path: Path) -> None:
    budget = Budget(BLOCKS * BLOCK)
    running = save(Checkpoints(tmp_path, budget), 1, large())
    running.settle()
    running.cancel()
    running.settle()
    assert running.run() is None
    assert (list(tmp_path.iterdir()), free(budget, BLOCKS * BLOCK)) == ([], True)


def test_a_full_disk_stops_no_step_and_gives_the_memory_back(
    tmp_path: Path, thread: ThreadPoolExecutor, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "_SET", failpoints.parse("checkpoint.write=enospc@2"))
    budget = Budget(BLOCK)
    running = save(Checkpoints(tmp_path, budget), 1, large())
    done = thread.submit(running.run)
    settling = settled_late(thread, running)
    gate.let(ALL)
    settling.result(timeout=30)
    with pytest.raises(DiskFull):
        done.result(timeout=30)
    running.settle()
    assert (list(tmp_path.iterdir()), free(budget, BLOCK)) == ([], True)
