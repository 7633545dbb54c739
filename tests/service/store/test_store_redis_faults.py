"""Redis away, full, restarted, emptied or set back; connections that break: nothing that was acknowledged is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis_states import BUFFERS, FLAT, LAYOUT, SESSION, assert_stands, created, opened, remembered, step, store_at

from optimd_service.errors import (
    InsufficientMemory,
    RedisFull,
    RedisUnavailable,
    SessionLost,
    StaleReplica,
    StateDamaged,
)
from optimd_service.store.redis.store import RedisStore
from optimd_service.types import BufferSize, Version
from redis_proxy import RedisProxy
from redis_server import RedisServer


@pytest.fixture
def store(redis: RedisServer) -> Iterator[RedisStore]:
    with store_at(redis.url) as store:
        yield store


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(redis.folder / "redis.sock") as proxy:
        yield proxy


@pytest.fixture
def by_proxy(proxy: RedisProxy) -> Iterator[RedisStore]:
    with store_at(proxy.url) as store:
        yield store


def assert_redis_holds(redis: RedisServer, at_step: int, value: float) -> None:
    """A process that comes later finds that step, wholly."""
    with store_at(redis.url) as store:
        assert_stands(opened(store), at_step, value)


def test_while_redis_is_away_nothing_is_taken_and_then_it_goes_on(redis: RedisServer, store: RedisStore) -> None:
    state = created(store)
    step(state, 1.0, k=remembered(1))
    redis.kill()
    uses: list[Callable[[], object]] = [
        lambda: step(state, 2.0),
        state.catch_up,
        lambda: store.create("new", LAYOUT, BUFFERS, FLAT),
        lambda: store.drop(SESSION),
        lambda: store.standing(SESSION),
        store.ids,
    ]
    for use in uses:
        with pytest.raises(RedisUnavailable) as caught:
            use()
        assert str(redis.folder) not in caught.value.detail
    redis.start()
    state.catch_up()
    assert_stands(state, 1, 1.0)
    assert state.recall("k") == remembered(1)
    step(state, 2.0)
    assert_redis_holds(redis, 2, 2.0)


def test_a_connection_that_redis_closed_while_it_was_idle_is_opened_again(
    redis: RedisServer, store: RedisStore
) -> None:
    state = created(store)
    redis.client.client_kill_filter(_type="normal", skipme=True)
    step(state, 1.0)
    redis.client.client_kill_filter(_type="normal", skipme=True)
    state.catch_up()
    assert_stands(state, 1, 1.0)


def test_a_commit_whose_reply_is_lost_counts_once(redis: RedisServer, proxy: RedisProxy, by_proxy: RedisStore) -> None:
    state = created(by_proxy)
    proxy.losing, proxy.times = b"committed", 1
    step(state, 1.0, k=remembered(1))
    assert proxy.times == 0
    step(state, 2.0)
    assert_redis_holds(redis, 2, 2.0)
    assert set(redis.expiries().values()) == {-1}


def test_a_commit_whose_every_reply_is_lost_is_found_afterwards(
    redis: RedisServer, proxy: RedisProxy, by_proxy: RedisStore
) -> None:
    state = created(by_proxy)
    proxy.losing, proxy.times = b"committed", 100
    with pytest.raises(RedisUnavailable):
        step(state, 1.0, k=remembered(1))
    proxy.times = 0
    state.catch_up()
    assert_stands(state, 1, 1.0)
    assert state.recall("k") == remembered(1)
    step(state, 2.0)
    assert_redis_holds(redis, 2, 2.0)


def test_what_others_built_on_a_commit_survives_that_its_writer_sends_it_again(
    redis: RedisServer, proxy: RedisProxy, by_proxy: RedisStore, store: RedisStore
) -> None:
    state = created(by_proxy)
    ahead = opened(store)

    def build_on_it() -> None:
        ahead.catch_up()
        working = ahead.begin({})
        working.params[0] = 5.0  # of one chunk; all others stay those of the commit before
        ahead.commit(working, ahead.version, {})

    proxy.losing, proxy.times = b"committed", 1
    proxy.on_loss = build_on_it
    with pytest.raises(StaleReplica):
        step(state, 1.0, k=remembered(1))
    assert set(redis.expiries().values()) == {-1}
    state.catch_up()
    assert state.recall("k") == remembered(1)
    assert state.version.step == 1
    assert state.read_state().params[:2].tolist() == [5.0, 1.0]
    with store_at(redis.url) as later:
        assert opened(later).read_state().params[:2].tolist() == [5.0, 1.0]


@pytest.mark.parametrize("at", [100, 1_500_000, 5_000_000])
def test_of_a_writer_that_died_half_way_nothing_is_seen_and_nothing_stays(
    at: int, redis: RedisServer, proxy: RedisProxy, by_proxy: RedisStore
) -> None:
    state = created(by_proxy)
    step(state, 1.0)
    before = redis.expiries()
    proxy.room = at
    with pytest.raises(RedisUnavailable):
        step(state, 2.0)
    proxy.room = None
    assert_redis_holds(redis, 1, 1.0)
    left = redis.expiries()
    assert left.keys() >= before.keys()
    assert all(expires == -1 if key in before else 0 < expires <= 600 for key, expires in left.items())
    state.catch_up()
    assert_stands(state, 1, 1.0)
    step(state, 3.0)  # not what was given up
    assert_redis_holds(redis, 2, 3.0)


def test_a_redis_without_room_refuses_the_step_and_goes_on_when_there_is_some(
    redis: RedisServer, store: RedisStore
) -> None:
    state = created(store)
    step(state, 1.0)
    before = redis.expiries()
    used = redis.client.info("memory")["used_memory"]
    redis.client.config_set("maxmemory", used + 2_500_000)
    for _ in range(3):
        with pytest.raises(RedisFull):
            step(state, 2.0, k=remembered(2))
        assert redis.expiries() == before
        state.catch_up()
        assert_stands(state, 1, 1.0)
        assert state.recall("k") is None
    redis.client.config_set("maxmemory", 0)
    step(state, 2.0)
    assert_redis_holds(redis, 2, 2.0)


def test_a_redis_that_comes_back_from_its_file_has_every_step(redis: RedisServer, store: RedisStore) -> None:
    state = created(store)
    for number in range(1, 4):
        step(state, float(number), **{str(number): remembered(number)})
        redis.kill()
        redis.start()
        assert_redis_holds(redis, number, float(number))
        state.catch_up()
        assert_stands(state, number, float(number))


def test_a_session_that_redis_has_lost_is_refused_and_never_made_up(redis: RedisServer, store: RedisStore) -> None:
    state = created(store)
    step(state, 1.0)
    redis.kill()
    redis.forget()
    redis.start()
    for use in (state.catch_up, lambda: step(state, 2.0), state.catch_up):
        with pytest.raises(SessionLost, match="Redis has lost this session") as caught:
            use()
        assert caught.value.evidence == {"step": 1}
    assert redis.expiries() == {}


def set_back(redis: RedisServer, kept: Path) -> None:
    """Give Redis an older file than it had."""
    redis.kill()
    redis.forget()
    shutil.copytree(kept, redis.folder / "appendonlydir")
    redis.start()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def test_a_redis_that_has_lost_steps_is_told_from_one_that_has_none_to_tell(
    redis: RedisServer, store: RedisStore, kept: Path
) -> None:
    state = created(store)
    step(state, 1.0)
    shutil.copytree(redis.folder / "appendonlydir", kept)
    step(state, 2.0)
    step(state, 3.0)
    set_back(redis, kept)
    with pytest.raises(SessionLost) as caught:
        state.catch_up()
    assert caught.value.evidence == {"step": 3, "found_step": 1}


def test_a_history_that_others_wrote_over_lost_steps_is_not_taken_for_ones_own(
    redis: RedisServer, store: RedisStore, kept: Path
) -> None:
    state = created(store)
    step(state, 1.0)
    shutil.copytree(redis.folder / "appendonlydir", kept)
    step(state, 2.0)
    set_back(redis, kept)
    with store_at(redis.url) as another:
        other = opened(another)
        for number in (2, 3):
            step(other, 7.0)
            with pytest.raises(SessionLost) as caught:
                state.catch_up()
            assert caught.value.evidence == {"step": 2, "found_step": number}
        with pytest.raises(StaleReplica):
            step(state, 8.0)
        assert_redis_holds(redis, 3, 7.0)


def test_a_copy_that_no_memory_is_left_for_is_not_shown_half_made_good(redis: RedisServer) -> None:
    held = 4 * FLAT.nbytes
    with store_at(redis.url) as first, store_at(redis.url) as there, store_at(redis.url, held) as here:
        created(first)
        state = opened(here)
        working = state.begin({})
        working.params.fill_(9.0)
        state.abandon(working, written=True)
        ahead = opened(there, SESSION)
        ahead.commit(ahead.begin({"large": BufferSize(10**6, FLAT.dtype)}), Version(0, 1), {})
        with pytest.raises(InsufficientMemory):
            state.catch_up()
        with pytest.raises(StateDamaged):
            state.snapshot()
