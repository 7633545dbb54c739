"""Sessions in Redis as one process after the other sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from optimd_service.store.contract import Record, Remembered
from optimd_service.store.device import DeviceStore
from optimd_service.store.redis.server import RedisServer
from optimd_service.store.redis.state import RedisState
from optimd_service.store.redis.store import RedisStore
from optimd_service.types import BufferSize, Layout, Receipt, TensorSpec, Version

NUMEL = 600_000  # three chunks of float32
LAYOUT = Layout.arrange([TensorSpec("w", (NUMEL,))], ["default"], torch.float32)
FLAT = BufferSize(NUMEL, torch.float32)
BUFFERS = {"exp_avg": FLAT, "codes": BufferSize(NUMEL, torch.uint8)}
CHUNKS = 3 + 3 + 1
SESSION = "s"


@contextmanager
def store_at(url: str, limit: int = 10**9) -> Iterator[RedisStore]:
    """A store as a process of its own would have it."""
    store = RedisStore(RedisServer(url), DeviceStore(limit))
    yield store
    store.close()


def created(store: RedisStore, session: str = SESSION) -> RedisState:
    """A session whose first weights are committed."""
    state = store.create(session, LAYOUT, BUFFERS, FLAT)
    state.commit(state.begin({}), state.version, {}, Record("created", {}, standing={"name": "first"}))
    return state


def opened(store: RedisStore, session: str = SESSION) -> RedisState:
    """The session as another process finds it."""
    return store.open(session, LAYOUT, FLAT)[0]


def remembered(step: int) -> Remembered:
    return Remembered(Receipt("s", step, step - 1, "applied", 0.1, None, 1.0, 1.0, 1.0, 1.0, 0), bytes([step] * 16))


def step(state: RedisState, value: float, **keys: Remembered) -> None:
    """Commit a step after which every weight is ``value``, every moment ten times that, and the number ``d`` it too."""
    working = state.begin({})
    working.params.fill_(value)
    working.state["exp_avg"].fill_(10 * value)
    working.state["codes"].fill_(value)
    working.updates += 1
    working.started.add(("default", "exp_avg"))
    working.numbers["default"] = {"d": value}
    try:
        state.commit(working, Version(state.version.step + 1, 0), keys, Record("push", {"value": value}))
    except BaseException:
        state.abandon(working, written=True)
        raise


def assert_stands(state: RedisState, at_step: int, value: float) -> None:
    """The copy is that step's, wholly."""
    stored = state.read_state()
    assert state.version == Version(at_step, 0)
    assert (stored.params == value).all()
    assert (stored.state["exp_avg"] == 10 * value).all()
    assert (stored.state["codes"] == value).all()
    assert stored.updates == at_step
    if at_step:
        assert stored.started == {("default", "exp_avg")}
        assert stored.numbers == {"default": {"d": value}}
