"""What every store promises; each is run through all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from optimd_service.errors import InsufficientMemory, StateDamaged
from optimd_service.store.contract import Remembered, Store, StoredState
from optimd_service.store.device import REMEMBERED_KEYS, DeviceStore
from optimd_service.store.redis.server import RedisServer
from optimd_service.store.redis.store import RedisStore
from optimd_service.types import BufferSize, Layout, Receipt, TensorSpec, Version

LAYOUT = Layout.arrange([TensorSpec("w", (2, 3)), TensorSpec("b", (2,))], ["default"], torch.float32)
FLAT = BufferSize(8, torch.float32)
ONE_BUFFER = {"exp_avg": FLAT}
MOMENTUM = {"momentum_buffer": FLAT}
BUFFER_BYTES = 8 * 4

NewStore = Callable[[int], Store]


@pytest.fixture(params=["device", "redis"])
def new_store(request: pytest.FixtureRequest) -> Iterator[NewStore]:
    """Makes a store that may hold so many bytes."""
    if request.param == "device":
        yield DeviceStore
        return
    server = RedisServer(request.getfixturevalue("forgetful_redis").url)
    yield lambda limit: RedisStore(server, DeviceStore(limit))
    server.close()


@pytest.fixture
def state(new_store: NewStore) -> StoredState:
    return new_store(10**6).create("s", LAYOUT, ONE_BUFFER, FLAT)


def remembered(step: int) -> Remembered:
    receipt = Receipt("s", step, step - 1, "applied", 0.1, None, 1.0, 1.0, 1.0, 1.0, 0)
    return Remembered(receipt, step.to_bytes(16, "little"))


def step(state: StoredState, value: float, **keys: Remembered) -> None:
    """Commit a step after which every weight is ``value`` and every moment ten times that."""
    working = state.begin({})
    working.params.fill_(value)
    for buffer in working.state.values():
        buffer.fill_(10 * value)
    working.updates += 1
    working.started.add(("default", "exp_avg"))
    state.commit(working, Version(state.version.step + 1, 0), keys)


def test_a_new_session_is_zero_at_version_zero(state: StoredState) -> None:
    assert state.version == Version(0, 0)
    stored = state.read_state()
    assert (stored.params.shape, stored.params.dtype) == ((8,), torch.float32)
    assert stored.state.keys() == {"exp_avg"}
    assert (stored.updates, stored.started) == (0, set())
    for flat in (stored.params, state.grads, *stored.state.values()):
        assert (flat == 0).all()


def test_a_commit_publishes_weights_state_and_version_together(state: StoredState) -> None:
    step(state, 3.0)
    stored = state.read_state()
    assert state.version == Version(1, 0)
    assert (stored.params == 3).all()
    assert (stored.state["exp_avg"] == 30).all()
    assert (stored.updates, stored.started) == (1, {("default", "exp_avg")})


def test_nothing_is_published_before_the_commit(state: StoredState) -> None:
    step(state, 1.0)
    working = state.begin({})
    working.updates += 1
    working.started.add(("another", "exp_avg"))
    assert state.version == Version(1, 0)
    assert (state.read_state().updates, state.read_state().started) == (1, {("default", "exp_avg")})


def test_a_snapshot_stays_what_it_was_however_many_steps_follow(state: StoredState) -> None:
    step(state, 1.0)
    first = state.snapshot()
    step(state, 2.0)
    second = state.snapshot()
    step(state, 3.0)
    step(state, 4.0)
    assert (first.params == 1).all()
    assert first.version == Version(1, 0)
    assert (second.params == 2).all()
    assert second.version == Version(2, 0)
    first.release()
    step(state, 5.0)
    assert (second.params == 2).all()
    last = state.snapshot()
    assert (last.params == 5).all()
    assert last.version == Version(5, 0)


def test_a_release_too_many_does_not_free_another_readers_weights(state: StoredState) -> None:
    first, second = state.snapshot(), state.snapshot()
    first.release()
    first.release()
    step(state, 1.0)
    assert (second.params == 0).all()


def test_what_begin_hands_out_holds_the_current_weights(state: StoredState) -> None:
    step(state, 1.0)
    held = state.snapshot()
    working = state.begin({})
    assert (working.params == 1).all()
    assert (working.state["exp_avg"] == 10).all()
    held.release()


def test_a_buffer_asked_for_later_starts_at_zero_and_is_counted(state: StoredState) -> None:
    before = state.held_bytes
    working = state.begin(MOMENTUM)
    assert working.state.keys() == {"exp_avg", "momentum_buffer"}
    assert (working.state["momentum_buffer"] == 0).all()
    state.commit(working, Version(1, 0), {})
    assert state.held_bytes == before + BUFFER_BYTES
    assert state.read_state().state.keys() == {"exp_avg", "momentum_buffer"}


@pytest.mark.parametrize("size", [BufferSize(3, torch.float32), BufferSize(8, torch.float64)], ids=["length", "dtype"])
def test_a_buffer_asked_for_in_another_size_is_handed_out_new_and_zero(state: StoredState, size: BufferSize) -> None:
    step(state, 1.0)
    before = state.held_bytes
    working = state.begin({"exp_avg": size})
    buffer = working.state["exp_avg"]
    assert (buffer.numel(), buffer.dtype) == size
    assert (buffer == 0).all()
    assert (state.read_state().state["exp_avg"] == 10).all()
    state.commit(working, Version(1, 1), {})
    assert state.read_state().state["exp_avg"].numel() == size.numel
    assert state.held_bytes == before - BUFFER_BYTES + size.nbytes


def test_a_buffer_asked_for_in_the_size_it_has_keeps_what_it_holds(state: StoredState) -> None:
    step(state, 1.0)
    assert (state.begin(ONE_BUFFER).state["exp_avg"] == 10).all()


def test_a_buffer_that_a_commit_leaves_out_is_given_up(state: StoredState) -> None:
    before = state.held_bytes
    step(state, 1.0)
    working = state.begin({})
    del working.state["exp_avg"]
    assert state.read_state().state.keys() == {"exp_avg"}
    state.commit(working, Version(1, 1), {})
    assert state.read_state().state == {}
    assert state.held_bytes == before - BUFFER_BYTES
    assert (state.begin(ONE_BUFFER).state["exp_avg"] == 0).all()


def test_numbers_are_published_by_the_commit_and_not_before(state: StoredState) -> None:
    assert state.read_state().numbers == {}
    working = state.begin({})
    working.numbers["default"] = {"d": 0.5}
    assert state.read_state().numbers == {}
    state.commit(working, Version(1, 0), {})
    assert state.read_state().numbers == {"default": {"d": 0.5}}


def test_numbers_of_an_abandoned_update_are_forgotten(state: StoredState) -> None:
    working = state.begin({})
    working.numbers["default"] = {"d": 0.5}
    state.commit(working, Version(1, 0), {})
    working = state.begin({})
    working.numbers["default"]["d"] = 0.25
    working.numbers["loss_scale"] = {"scale": 2.0}
    state.abandon(working, written=False)
    assert state.read_state().numbers == {"default": {"d": 0.5}}
    assert state.begin({}).numbers == {"default": {"d": 0.5}}


def test_a_key_is_recalled_from_the_commit_that_brought_it(state: StoredState) -> None:
    assert state.recall("k") is None
    step(state, 1.0, k=remembered(1))
    state.commit(state.begin({}), state.version, {"skipped": remembered(2)})
    assert state.recall("k") == remembered(1)
    assert state.recall("skipped") == remembered(2)
    assert state.version == Version(1, 0)


def test_the_newest_keys_are_remembered_and_the_oldest_forgotten_first(state: StoredState) -> None:
    for i in range(REMEMBERED_KEYS + 3):
        state.commit(state.begin({}), state.version, {str(i): remembered(i)})
    assert [state.recall(str(i)) is None for i in range(4)] == [True, True, True, False]
    assert state.recall(str(REMEMBERED_KEYS + 2)) == remembered(REMEMBERED_KEYS + 2)


def test_an_update_given_back_unwritten_changes_nothing(state: StoredState) -> None:
    step(state, 1.0)
    for held in (None, state.snapshot()):
        state.abandon(state.begin({}), written=False)
        assert state.version == Version(1, 0)
        assert (state.read_state().params == 1).all()
        if held:
            held.release()
    step(state, 2.0)
    assert (state.snapshot().params == 2).all()


def test_an_update_that_failed_half_way_is_never_shown(state: StoredState) -> None:
    reader = state.snapshot()
    working = state.begin({})
    working.params[0] = float("nan")
    state.abandon(working, written=True)
    assert (reader.params == 0).all()
    for use in (state.snapshot, state.read_state, lambda: state.begin({})):
        with pytest.raises(StateDamaged):
            use()
    assert (state.version, state.numbers) == (Version(0, 0), {})  # what a session is shown by


def test_a_session_beyond_the_budget_takes_nothing(new_store: NewStore) -> None:
    store = new_store(5 * BUFFER_BYTES)
    store.create("first", LAYOUT, ONE_BUFFER, FLAT)
    with pytest.raises(InsufficientMemory) as caught:
        store.create("second", LAYOUT, ONE_BUFFER, FLAT)
    assert caught.value.evidence == {"needed_bytes": 3 * BUFFER_BYTES, "available_bytes": 2 * BUFFER_BYTES}
    store.create("without state", LAYOUT, {}, FLAT)


def test_memory_that_the_machine_does_not_have_is_refused_and_not_counted(new_store: NewStore) -> None:
    store = new_store(2**63)
    huge = Layout.arrange([TensorSpec("w", (2**50,))], ["default"], torch.float32)
    for _ in range(3):
        with pytest.raises(InsufficientMemory):
            store.create("huge", huge, {"exp_avg": BufferSize(2**50, torch.float32)}, FLAT)
    assert store.create("small", LAYOUT, ONE_BUFFER, FLAT).held_bytes == 3 * BUFFER_BYTES


def test_a_buffer_beyond_the_budget_changes_nothing(new_store: NewStore) -> None:
    state = new_store(3 * BUFFER_BYTES).create("s", LAYOUT, ONE_BUFFER, FLAT)
    step(state, 1.0)
    with pytest.raises(InsufficientMemory):
        state.begin(MOMENTUM)
    assert state.held_bytes == 3 * BUFFER_BYTES
    step(state, 2.0)
    assert (state.snapshot().params == 2).all()


def test_dropping_a_session_frees_its_budget(new_store: NewStore) -> None:
    store = new_store(4 * BUFFER_BYTES)
    for _ in range(3):
        state = store.create("s", LAYOUT, ONE_BUFFER, FLAT)
        state.commit(state.begin(MOMENTUM), Version(1, 0), {})
        store.drop("s")
    store.drop("never was")
    store.create("again", LAYOUT, ONE_BUFFER, FLAT)
    with pytest.raises(InsufficientMemory):
        store.create("one too many", LAYOUT, ONE_BUFFER, FLAT)


def room_left(store: Store) -> int:
    """How many buffers the store would still hold."""
    for buffers in range(10):
        try:
            store.create("probe", LAYOUT, {}, BufferSize(8 * buffers, torch.float32))
        except InsufficientMemory:
            return buffers
        store.drop("probe")
    raise AssertionError("the budget has no bound")


def test_the_budget_of_a_buffer_that_a_commit_leaves_out_or_replaces_is_free_again(new_store: NewStore) -> None:
    store = new_store(6 * BUFFER_BYTES)
    state = store.create("s", LAYOUT, ONE_BUFFER, FLAT)
    left = room_left(store)
    for _ in range(5):
        working = state.begin(MOMENTUM)
        assert room_left(store) == left - 1
        del working.state["exp_avg"]
        state.commit(working, Version(1, 0), {})
        assert room_left(store) == left
        working = state.begin(ONE_BUFFER)
        del working.state["momentum_buffer"]
        state.commit(working, Version(1, 0), {})
    state.commit(state.begin({"exp_avg": BufferSize(16, torch.float32)}), Version(1, 0), {})
    assert room_left(store) == left - 1
    state.commit(state.begin(ONE_BUFFER), Version(1, 0), {})
    assert room_left(store) == left


@pytest.mark.parametrize("written", [False, True])
def test_the_budget_of_an_abandoned_update_is_free_again(new_store: NewStore, *, written: bool) -> None:
    store = new_store(6 * BUFFER_BYTES)
    state = store.create("s", LAYOUT, ONE_BUFFER, FLAT)
    left = room_left(store)
    working = state.begin({**MOMENTUM, "exp_avg": BufferSize(16, torch.float32)})
    assert room_left(store) == left - 3
    state.abandon(working, written=written)
    assert room_left(store) == left
    store.drop("s")
    assert room_left(store) == left + 3


def test_the_budget_of_the_buffers_before_one_that_does_not_fit_is_free_again(new_store: NewStore) -> None:
    store = new_store(6 * BUFFER_BYTES)
    state = store.create("s", LAYOUT, ONE_BUFFER, FLAT)
    left = room_left(store)
    for _ in range(5):
        with pytest.raises(InsufficientMemory):
            state.begin({**MOMENTUM, "another": FLAT, "too much": BufferSize(16, torch.float32)})
        assert room_left(store) == left
