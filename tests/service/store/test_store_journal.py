"""What was committed to a journal is what is read from it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_subject import PIECE, WRITERS, Written, append, opened, read, record, reopened

from optimd_service.errors import JournalCorrupt
from optimd_service.store.disk import PAGE, aligned
from optimd_service.store.journal import SMALL_BYTES, Journal

EDGES = (0, 1, PAGE - 1, PAGE, PAGE + 1, SMALL_BYTES, SMALL_BYTES + 1, PIECE, PIECE + 1, 3 * PIECE - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@st.composite
def records(draw: st.DrawFn) -> tuple[Written, list[int]]:
    """One, and where its payload is cut in pieces."""
    nbytes = draw(st.sampled_from(EDGES) | st.integers(0, 3 * PAGE))
    pieces = sorted(draw(st.lists(st.integers(0, nbytes), max_size=4)))
    seed = draw(st.binary(min_size=1, max_size=8))
    payload = (seed * (nbytes // len(seed) + 1))[:nbytes]
    return Written(draw(st.text(max_size=9)), draw(st.dictionaries(st.text(), JSON, max_size=4)), payload), pieces


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wanted=st.lists(records(), max_size=4))
def test_a_journal_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[Written, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with opened(folder) as journal:
        for number, (each, pieces) in enumerate(wanted, start=1):
            assert append(journal, each, pieces) == number
        assert read(journal) == [each for each, _ in wanted]
    assert reopened(folder) == [each for each, _ in wanted]


@pytest.mark.parametrize("nbytes", [40_000, 2 * PIECE + 12])
@pytest.mark.parametrize("offset", [0, 64], ids=["at a page", "elsewhere"])
def test_memory_need_not_be_aligned(tmp_path: Path, nbytes: int, offset: int) -> None:
    memory = aligned(nbytes + offset)[offset:]
    memory[:] = bytes(range(250)) * (nbytes // 250) + b"\1" * (nbytes % 250)
    with opened(tmp_path) as journal:
        entry = journal.begin(nbytes)
        entry.write(0, memory)
        entry.commit("push", {})
        into = aligned(nbytes + offset)[offset:]
        (only,) = journal.records(0, into=into)
        assert only.payload == memory == into


def test_a_tensor_of_any_dtype_is_its_bytes(tmp_path: Path) -> None:
    grads = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    with opened(tmp_path) as journal:
        entry = journal.begin(24)
        entry.write(0, grads)
        entry.write(24, torch.empty(0, 3))
        entry.commit("push", {})
        (only,) = journal.records(0)
        assert torch.frombuffer(only.payload, dtype=torch.bfloat16).tolist() == list(range(12))  # type: ignore[call-overload]


def test_blocks_may_come_in_any_order_and_again_from_their_beginning(tmp_path: Path) -> None:
    payload = b"".join(bytes([number]) * PIECE for number in (1, 2, 3))
    with opened(tmp_path) as journal:
        entry = journal.begin(len(payload))
        for block in (2, 0):
            entry.write(block * PIECE, memoryview(payload)[block * PIECE : (block + 1) * PIECE])
        entry.write(PIECE, memoryview(bytes(100)))
        entry.written()
        entry.write(PIECE, memoryview(payload)[PIECE : 2 * PIECE])
        entry.commit("push", {})
        assert read(journal) == [Written("push", {}, payload)]


@pytest.mark.parametrize("nbytes", [100, 2 * PIECE])
def test_a_payload_that_did_not_come_whole_is_no_record(tmp_path: Path, nbytes: int) -> None:
    with opened(tmp_path) as journal:
        entry = journal.begin(nbytes)
        entry.write(0, memoryview(bytes(50)))
        with pytest.raises(ValueError, match="comes after byte 50"):
            entry.write(51, memoryview(bytes(10)))
        with pytest.raises(ValueError, match="not in a payload"):
            entry.write(nbytes - 1, memoryview(bytes(2)))
        with pytest.raises(ValueError, match="has not come"):
            entry.commit("push", {})
        append(journal, record(1))
    assert reopened(tmp_path) == [record(1)]


@pytest.mark.parametrize("nbytes", [100, 2 * PIECE])
def test_a_discarded_entry_leaves_nothing(tmp_path: Path, nbytes: int) -> None:
    with opened(tmp_path) as journal:
        append(journal, record(1))
        entry = journal.begin(nbytes)
        entry.write(0, memoryview(record(9, nbytes).payload))
        entry.discard()
        assert journal.seq == 1
        append(journal, record(2))
    assert reopened(tmp_path) == [record(1), record(2)]


def test_one_entry_at_a_time_is_on_its_way(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        entry = journal.begin(0)
        for call in (lambda: journal.begin(0), journal.start_segment):
            with pytest.raises(RuntimeError, match="still on its way"):
                call()
        entry.commit("push", {})
        with pytest.raises(RuntimeError, match="is over"):
            entry.commit("push", {})
        assert journal.begin(0).commit("push", {}) == 2


def test_fields_beyond_what_was_announced_are_kept(tmp_path: Path) -> None:
    long = Written("created", {"names": ["x" * 100] * 1000}, b"abc")
    with opened(tmp_path) as journal:
        append(journal, long)
        append(journal, record(2))
    assert reopened(tmp_path) == [long, record(2)]


def test_fields_that_are_not_json_are_no_record(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        with pytest.raises(TypeError):
            append(journal, Written("push", {"now": object()}, b""))
        append(journal, record(1))
    assert reopened(tmp_path) == [record(1)]


def test_segments_are_read_as_one(tmp_path: Path) -> None:
    wanted = [record(number, nbytes) for number, nbytes in enumerate([100, 3 * PIECE, 0, 40_000, 100], start=1)]
    with opened(tmp_path) as journal:
        for each in wanted:
            append(journal, each)
            journal.start_segment()
            journal.start_segment()
        assert read(journal) == wanted
        assert [each.fields["number"] for each in journal.metas(2)] == [3, 4, 5]
        assert [each.seq for each in journal.records(1, until=3)] == [2, 3]
        assert list(journal.records(5)) == []
    assert len(list(tmp_path.glob("*.optj"))) == 6
    assert reopened(tmp_path, after=3) == wanted[3:]


def test_segments_behind_a_checkpoint_are_dropped_and_their_room_is_free(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(1, 7):
            append(journal, record(number, 40_000))
            if number % 2 == 0:
                journal.start_segment()
        before = journal.bytes
        assert journal.drop_before(1) == 0
        freed = journal.drop_before(5)
        assert journal.bytes == before - freed
        assert freed >= 4 * 40_000
        assert read(journal, after=4) == [record(5, 40_000), record(6, 40_000)]
        with pytest.raises(JournalCorrupt, match="Records 4 to 4 are missing"):
            list(journal.records(3))
        journal.drop_before(6)
        assert journal.seq == 6
    with opened(tmp_path) as journal:
        assert append(journal, record(7)) == 7


def test_of_the_segments_behind_a_checkpoint_the_newest_may_stay_up_to_so_many_bytes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(1, 5):
            append(journal, record(number, 40_000))
            journal.start_segment()
        each = min(file.stat().st_size for file in tmp_path.glob("*.optj") if file.stat().st_size > 40_000)
        assert journal.drop_before(4, spared_bytes=4 * each) == 0
        assert journal.drop_before(4, spared_bytes=4 * each - 1) == each
        assert journal.drop_before(4, spared_bytes=each) == 2 * each
        assert read(journal, after=3) == [record(4, 40_000)]


def test_a_new_journal_begins_behind_a_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path / "new", after=41) as journal:
        assert journal.seq == 41
        assert append(journal, record(42)) == 42
    with opened(tmp_path / "new", after=50) as journal:
        assert read(journal, after=41) == [record(42)]


def test_an_idle_journal_takes_little_room(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        append(journal, record(1))
        assert journal.bytes < 2**17
    assert sum(path.stat().st_size for path in tmp_path.glob("*.optj")) == 4 * PAGE


def test_journals_share_their_writers(tmp_path: Path) -> None:
    def fill(name: str, seed: int) -> None:
        with closing(Journal.open(tmp_path / name, WRITERS)) as journal:
            for number in range(1, 7):
                append(journal, record(number + seed, 3 * PIECE if number % 3 == 0 else 40_000))

    threads = [threading.Thread(target=fill, args=each) for each in (("a", 0), ("b", 100), ("c", 200))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, seed in (("a", 0), ("b", 100), ("c", 200)):
        found = reopened(tmp_path / name)
        assert [each.fields["number"] - seed for each in found] == list(range(1, 7))
        assert all(each == record(each.fields["number"], len(each.payload)) for each in found)
