"""The threads that compute: who works on a block changes nothing, and nobody walks away from work under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.judge import judge
from optimd_service.optim.update import BLOCK, update_
from optimd_service.session.arithmetic import Lane

LENGTH = 3 * BLOCK + 12_345


@contextmanager
def lane(workers: int) -> Iterator[Lane]:
    opened = Lane("test", threads=1, workers=workers)
    try:
        yield opened
    finally:
        opened.close()


async def weights_after_three_steps(optimizer: str, workers: int) -> tuple[torch.Tensor, list[object]]:
    row = OPTIMIZERS[optimizer]
    hyper = row.parse({}, where="optimizer")
    generator = torch.Generator().manual_seed(0)
    params, grads = (torch.randn(LENGTH, generator=generator) for _ in range(2))
    state = {name: torch.zeros(LENGTH) for name in row.state(hyper)}
    norms: list[object] = []
    with lane(workers) as place:
        for step in (1, 2, 3):
            group = FlatGroup(params, grads, state, step, fresh=step == 1)
            norms.append(await place.run(lambda group=group: update_(row, group, hyper, place)))
            norms.append(await place.run(lambda: judge(grads, place.each)))
    return params, norms


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
async def test_however_many_workers_share_the_blocks_the_bits_are_the_same(optimizer: str) -> None:
    alone, its_norms = await weights_after_three_steps(optimizer, workers=0)
    for workers in (1, 3):
        shared, norms = await weights_after_three_steps(optimizer, workers)
        assert torch.equal(shared, alone)
        assert norms == its_norms


async def test_a_cancelled_caller_waits_for_the_work_it_started() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(10)
        ended.set()

    with lane(workers=0) as place:
        task = asyncio.create_task(place.run(work))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended.is_set()


async def test_an_error_in_the_thread_is_raised_where_it_is_awaited() -> None:
    with lane(workers=0) as place, pytest.raises(ZeroDivisionError):
        await place.run(lambda: 1 / 0)
