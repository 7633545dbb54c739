"""The threads that compute: who works on a block changes nothing, and nobody walks away from work under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.judge import judge
from optimd_service.optim.state_dtype import StateDtype
from optimd_service.session.arithmetic import Lane
from optimd_service.session.plan import Plan
from optimd_service.session.policy import Policy
from optimd_service.session.settings import Settings
from optimd_service.session.updating import update_groups_
from optimd_service.store.device import DeviceStore
from optimd_service.types import Layout, TensorSpec, Version

# Small matrices for optimizers that look at tensors one by one: some of them decompose what they are given.
SHAPES = {False: [(3 * BLOCK + 12_345,)], True: [(12, 40), (40, 3), (7, 7), (64, 1)]}


@contextmanager
def lane(workers: int) -> Iterator[Lane]:
    opened = Lane("test", threads=1, workers=workers)
    try:
        yield opened
    finally:
        opened.close()


def plan_of(optimizer: str, state_dtype: StateDtype) -> Plan:
    row = OPTIMIZERS[optimizer]
    tensors = [TensorSpec(f"w{i}", shape) for i, shape in enumerate(SHAPES[row.shapes is not None])]
    layout = Layout.arrange(tensors, ["default"], torch.float32)
    return Plan(layout, Settings(row, tuple(layout.groups), {}, {}), Policy(state_dtype=state_dtype))


async def weights_after_three_steps(
    optimizer: str, state_dtype: StateDtype, workers: int
) -> tuple[torch.Tensor, list[object]]:
    plan = plan_of(optimizer, state_dtype)
    state = DeviceStore(2**30).create("s", plan.layout, plan.buffers, plan.grads)
    generator = torch.Generator().manual_seed(0)
    state.begin({}).params.normal_(generator=generator)
    state.grads.normal_(generator=generator)
    norms: list[object] = []
    with lane(workers) as place:

        def step() -> object:
            working = state.begin(plan.buffers)
            found = update_groups_(working, state.grads, plan, plan.settings.resolved, place)
            state.commit(working, Version(state.version.step + 1, 0), {})
            return found

        for _ in range(3):
            norms.append(await place.run(step))
            norms.append(await place.run(lambda: judge(state.grads, place.each)))
    return state.read_state().params, norms


@pytest.mark.parametrize(
    ("optimizer", "state_dtype"), [*((name, "f32") for name in OPTIMIZERS), ("adamw", "bf16"), ("adamw", "8bit")]
)
async def test_however_many_workers_share_the_blocks_the_bits_are_the_same(
    optimizer: str, state_dtype: StateDtype
) -> None:
    alone, its_norms = await weights_after_three_steps(optimizer, state_dtype, workers=1)
    for workers in (1, 3):
        shared, norms = await weights_after_three_steps(optimizer, state_dtype, workers)
        assert torch.equal(shared, alone)
        assert norms == its_norms


async def test_a_cancelled_caller_waits_for_the_work_it_started() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(10)
        ended.set()

    with lane(workers=1) as place:
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
    with lane(workers=1) as place, pytest.raises(ZeroDivisionError):
        await place.run(lambda: 1 / 0)
