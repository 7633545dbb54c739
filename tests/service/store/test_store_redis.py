"""Sessions in Redis: any process serves any of them, and none sees a mixture or writes over another."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from redis_states import (
    BUFFERS,
    CHUNKS,
    FLAT,
    LAYOUT,
    SESSION,
    assert_stands,
    created,
    opened,
    remembered,
    step,
    store_at,
)

from optimd_service.errors import SessionLost, SessionNotFound, StaleReplica
from optimd_service.store.contract import Record
from optimd_service.store.device import REMEMBERED_KEYS
from optimd_service.store.redis.committed import Caught
from optimd_service.store.redis.store import RedisStore
from optimd_service.types import BufferSize, Version
from redis_server import RedisServer


@pytest.fixture
def here(forgetful_redis: RedisServer) -> Iterator[RedisStore]:
    with store_at(forgetful_redis.url) as store:
        yield store


@pytest.fixture
def there(forgetful_redis: RedisServer) -> Iterator[RedisStore]:
    """The same Redis, from another process."""
    with store_at(forgetful_redis.url) as store:
        yield store


def calls(redis: RedisServer, command: str) -> int:
    """How often Redis was asked this."""
    stats = redis.client.info("commandstats")
    return stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_what_one_process_commits_another_finds(here: RedisStore, there: RedisStore) -> None:
    state = created(here)
    step(state, 3.0, k=remembered(1))
    found = opened(there)
    assert_stands(found, 1, 3.0)
    assert found.recall("k") == remembered(1)
    assert found.held_bytes == state.held_bytes


def test_processes_take_turns_and_each_goes_on_from_the_others_step(here: RedisStore, there: RedisStore) -> None:
    first = created(here)
    second = opened(there)
    for number in range(1, 7):
        state = (first, second)[number % 2]
        state.catch_up()
        step(state, float(number), **{str(number): remembered(number)})
    first.catch_up()
    second.catch_up()
    for state in (first, second):
        assert_stands(state, 6, 6.0)
        assert all(state.recall(str(number)) == remembered(number) for number in range(1, 7))


def test_a_process_that_nobody_has_overtaken_reads_nothing_but_where_the_session_stands(
    here: RedisStore, forgetful_redis: RedisServer
) -> None:
    state = created(here)
    step(state, 1.0)
    before = calls(forgetful_redis, "get")
    for number in range(2, 5):
        assert state.catch_up() is None
        step(state, float(number))
    assert calls(forgetful_redis, "get") == before


def test_only_what_has_changed_is_written_and_only_that_is_read(
    here: RedisStore, there: RedisStore, forgetful_redis: RedisServer
) -> None:
    state = created(here)
    step(state, 1.0)
    found = opened(there)
    written, read = calls(forgetful_redis, "set"), calls(forgetful_redis, "get")
    working = state.begin({})
    working.params[-1] = 7.0
    state.commit(working, Version(2, 0), {})
    assert calls(forgetful_redis, "set") == written + 1
    found.catch_up()
    assert calls(forgetful_redis, "get") == read + 1
    assert found.read_state().params[-2:].tolist() == [1.0, 7.0]


def test_what_a_step_replaces_is_gone_from_redis_with_it(here: RedisStore, forgetful_redis: RedisServer) -> None:
    state = created(here)
    keys = set()
    for number in range(1, 5):
        step(state, float(number), k=remembered(1))
        keys.add(forgetful_redis.client.dbsize())
    head_remembered_records_and_the_sessions = 4
    assert keys == {CHUNKS + head_remembered_records_and_the_sessions}
    working = state.begin({})
    working.state.clear()
    state.commit(working, Version(4, 1), {})
    assert forgetful_redis.client.dbsize() == 3 + head_remembered_records_and_the_sessions
    assert set(forgetful_redis.expiries().values()) == {-1}


def test_a_process_that_was_overtaken_is_refused_and_changes_nothing(
    here: RedisStore, there: RedisStore, forgetful_redis: RedisServer
) -> None:
    stale = created(here)
    ahead = opened(there)
    step(ahead, 1.0)
    step(ahead, 2.0)
    keys = forgetful_redis.expiries()
    with pytest.raises(StaleReplica) as caught:
        step(stale, 9.0, k=remembered(9))
    assert caught.value.evidence == {"base_step": 0, "step": 2}
    assert forgetful_redis.expiries() == keys
    assert ahead.catch_up() is None
    assert_stands(ahead, 2, 2.0)
    stale.catch_up()
    assert_stands(stale, 2, 2.0)
    assert stale.recall("k") is None
    step(stale, 3.0)
    ahead.catch_up()
    assert_stands(ahead, 3, 3.0)


def test_an_update_that_failed_half_way_is_made_good_from_redis(here: RedisStore) -> None:
    state = created(here)
    step(state, 1.0)
    working = state.begin({})
    working.params[5] = float("nan")
    working.state["exp_avg"].zero_()
    state.abandon(working, written=True)
    state.catch_up()
    assert_stands(state, 1, 1.0)
    step(state, 2.0)


def test_a_reader_keeps_its_weights_while_others_steps_are_read(here: RedisStore, there: RedisStore) -> None:
    state = created(here)
    found = opened(there)
    held = found.snapshot()
    step(state, 1.0)
    found.catch_up()
    assert (held.params == 0).all()
    assert_stands(found, 1, 1.0)


def test_what_others_have_committed_is_told_once(here: RedisStore, there: RedisStore) -> None:
    state = created(here)
    assert here.standing(SESSION) == {"name": "first"}
    found = opened(there)
    assert found.catch_up() is None
    step(state, 1.0)
    state.commit(state.begin({}), Version(1, 0), {}, Record("changed", {}, standing={"name": "second"}))
    step(state, 2.0)
    pushed = Record("push", {"value": 2.0})
    changed = Record("changed", {})
    assert found.catch_up() == Caught({"name": "second"}, [Record("push", {"value": 1.0}), changed, pushed], 1)
    assert found.catch_up() is None
    assert state.catch_up() is None
    step(state, 3.0)
    assert found.catch_up() == Caught(None, [Record("push", {"value": 3.0})], 1)
    assert there.standing(SESSION) == {"name": "second"}


def test_buffers_that_another_process_has_exchanged_are_found(here: RedisStore, there: RedisStore) -> None:
    state = created(here)
    found = opened(there)
    working = state.begin({"momentum_buffer": BufferSize(5, torch.bfloat16), "exp_avg": BufferSize(7, torch.float64)})
    del working.state["codes"]
    working.state["momentum_buffer"].fill_(2.5)
    working.numbers["default"] = {"d": float("inf")}
    state.commit(working, Version(0, 1), {})
    found.catch_up()
    stored = found.read_state()
    assert {name: (b.numel(), b.dtype) for name, b in stored.state.items()} == {
        "momentum_buffer": (5, torch.bfloat16),
        "exp_avg": (7, torch.float64),
    }
    assert stored.state["momentum_buffer"].tolist() == [2.5] * 5
    assert stored.numbers == {"default": {"d": float("inf")}}
    assert found.held_bytes == state.held_bytes


def test_the_keys_of_another_process_are_remembered_as_long_as_ones_own(here: RedisStore, there: RedisStore) -> None:
    state = here.create(SESSION, LAYOUT, {}, FLAT)
    found = None
    for number in range(REMEMBERED_KEYS + 3):
        state.commit(state.begin({}), state.version, {str(number): remembered(1)})
        found = found or opened(there)
    found.catch_up()
    late = opened(there, SESSION)
    for each in (found, late):
        assert [each.recall(str(number)) is None for number in range(4)] == [True, True, True, False]
        assert each.recall(str(REMEMBERED_KEYS + 2)) == remembered(1)


def test_a_reader_never_sees_a_mixture_of_two_steps(here: RedisStore, there: RedisStore) -> None:
    state = created(here)
    found = opened(there)
    done = threading.Event()

    def write() -> None:
        for number in range(1, 60):
            step(state, float(number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        try:
            found.catch_up()
        except StaleReplica:
            continue
        at = found.version.step
        assert_stands(found, at, float(at))
        seen.add(at)
    writer.join()
    found.catch_up()
    assert_stands(found, 59, 59.0)
    assert len(seen) > 1


def test_a_deleted_session_is_gone_for_everybody(
    here: RedisStore, there: RedisStore, forgetful_redis: RedisServer
) -> None:
    state = created(here)
    found = opened(there)
    step(state, 1.0, k=remembered(1))
    created(here, "another")
    assert there.ids() == ["another", SESSION]
    here.drop(SESSION)
    assert there.ids() == ["another"]
    assert there.standing("never was") is None
    for use in (found.catch_up, lambda: step(found, 2.0), lambda: opened(there), lambda: there.standing(SESSION)):
        with pytest.raises(SessionNotFound):
            use()
    left = {key: expires for key, expires in forgetful_redis.expiries().items() if "{s}" in key}
    assert left.keys() == {"optimd:{s}:deleted"}
    assert min(left.values()) > 0


def test_a_session_whose_creation_failed_leaves_nothing(here: RedisStore, forgetful_redis: RedisServer) -> None:
    here.create(SESSION, LAYOUT, BUFFERS, FLAT)
    here.drop(SESSION)
    assert forgetful_redis.expiries() == {}


def test_a_closed_copy_frees_its_memory_and_leaves_the_session(here: RedisStore) -> None:
    created(here)
    here.forget(SESSION)
    assert_stands(opened(here), 0, 0.0)


@pytest.mark.parametrize("which", ["params", "state.exp_avg"])
def test_a_session_of_which_redis_has_dropped_a_piece_is_refused(
    which: str, here: RedisStore, there: RedisStore, forgetful_redis: RedisServer
) -> None:
    state = created(here)
    step(state, 1.0)
    forgetful_redis.client.unlink(next(key for key in forgetful_redis.expiries() if which in key))
    with pytest.raises(SessionLost, match="part of this session"):
        opened(there)
    there.create("memory is free again", LAYOUT, BUFFERS, FLAT)


def test_a_piece_that_is_not_what_was_written_is_refused(
    here: RedisStore, there: RedisStore, forgetful_redis: RedisServer
) -> None:
    state = created(here)
    step(state, 1.0)
    forgetful_redis.client.setrange(next(key for key in forgetful_redis.expiries() if "params" in key), 1000, b"\x55")
    with pytest.raises(SessionLost, match="part of this session"):
        opened(there)
