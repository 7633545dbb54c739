"""What a crash, a disk or a stranger may have left in a journal's files: cut, refused, never read as something else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from journal_subject import PIECE, WRITERS, Written, append, opened, read, record, reopened

from optimd_service.errors import JournalCorrupt
from optimd_service.store.disk import PAGE
from optimd_service.store.journal import MARK, Journal
from optimd_service.store.mark import Mark
from optimd_service.store.record import MAGIC, Head, sum_of
from optimd_service.store.segment import Opening

THREE = [record(1, 5000), record(2), record(3)]
# Where the third record begins: behind the opening, 1 + 2 + 1 pages of the first, 1 + 1 + 1 of the second.
THIRD_AT = 8 * PAGE


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: some thousand journals are opened there."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:  # noqa: S108  a file system
        yield Path(name)


def fill(folder: Path, wanted: list[Written]) -> Path:
    """The segment that holds these."""
    with opened(folder) as journal:
        for each in wanted:
            append(journal, each)
    (path,) = folder.glob("*.optj")
    return path


def acknowledge(folder: Path, seq: int) -> None:
    """Let ``seq`` be the newest record that anybody was told of."""
    mark = Mark(folder / MARK)
    mark.set(seq)
    mark.close()


def refused(folder: Path) -> JournalCorrupt:
    """How this journal is refused, at once or when it is read."""
    with pytest.raises(JournalCorrupt) as refusal:
        reopened(folder)
    return refusal.value


def found_or_refused(folder: Path) -> list[Written] | JournalCorrupt:
    try:
        return reopened(folder)
    except JournalCorrupt as refusal:
        return refusal


def test_a_tail_cut_at_any_byte_is_the_records_before_it(folder: Path) -> None:
    path = fill(folder, THREE)
    whole = path.read_bytes()
    for length in range(THIRD_AT, len(whole)):
        path.write_bytes(whole[:length])
        acknowledge(folder, 2)
        journal = Journal.open(folder, WRITERS)
        assert (journal.seq, path.stat().st_size) == (2, THIRD_AT), length
        journal.close()
    assert reopened(folder) == THREE[:2]


def test_a_record_that_was_acknowledged_is_missed_wherever_its_file_is_cut(folder: Path) -> None:
    path = fill(folder, THREE)
    whole = path.read_bytes()
    for length in range(PAGE, len(whole), 101):
        path.write_bytes(whole[:length])
        expected = PAGE if length < 5 * PAGE else 5 * PAGE if length < THIRD_AT else THIRD_AT
        assert refused(folder).evidence == {"file": path.name, "offset": expected}


def test_what_follows_a_cut_is_kept(folder: Path) -> None:
    path = fill(folder, THREE)
    path.write_bytes(path.read_bytes()[:-1])
    acknowledge(folder, 2)
    with opened(folder) as journal:
        assert append(journal, record(9)) == 3
    assert reopened(folder) == [*THREE[:2], record(9)]


@pytest.mark.parametrize("acknowledged", [3, 2], ids=["all acknowledged", "the last one not"])
def test_a_flipped_bit_is_never_read_as_a_record(folder: Path, acknowledged: int) -> None:
    path = fill(folder, THREE)
    whole = path.read_bytes()
    refusals = 0
    for at in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        acknowledge(folder, acknowledged)
        found = found_or_refused(folder)
        if isinstance(found, JournalCorrupt):
            refusals += 1
            assert found.evidence["file"] == path.name
            assert at >= found.evidence["offset"] in {0, PAGE, 5 * PAGE, THIRD_AT}
        else:
            assert found == THREE or (found == THREE[:2] and at >= THIRD_AT and acknowledged == 2), at
    assert refusals > len(whole) / 11 / 3


def test_a_flipped_bit_in_a_large_payload_is_found(tmp_path: Path) -> None:
    path = fill(tmp_path, [record(1), record(2, 3 * PIECE), record(3)])
    with path.open("r+b") as file:
        file.seek(4 * PAGE + PAGE + 2 * PIECE + 77)
        file.write(b"\xff")
    assert refused(tmp_path).evidence == {"file": path.name, "offset": 4 * PAGE}
    with opened(tmp_path) as journal:
        assert [each.seq for each in journal.metas(0)] == [1, 2, 3]
        assert [each.seq for each in journal.records(2)] == [3]


@pytest.mark.parametrize("nbytes", [100, 2 * PIECE])
def test_a_record_whose_head_came_to_disk_before_its_payload_is_cut(tmp_path: Path, nbytes: int) -> None:
    path = fill(tmp_path, [record(1), record(2, nbytes)])
    with path.open("r+b") as file:
        file.seek(5 * PAGE)
        file.write(bytes(50))
    acknowledge(tmp_path, 1)
    assert reopened(tmp_path) == [record(1)]


def test_a_damaged_record_with_others_behind_it_is_no_torn_tail(tmp_path: Path) -> None:
    path = fill(tmp_path, [record(1), record(2, 2 * PIECE), record(3)])
    with path.open("r+b") as file:
        file.seek(4 * PAGE)
        file.write(b"\0")
    acknowledge(tmp_path, 0)
    size = path.stat().st_size
    assert refused(tmp_path).evidence["offset"] == 4 * PAGE
    assert path.stat().st_size == size


def test_a_head_inside_a_payload_is_no_head(tmp_path: Path) -> None:
    """Neither one made with another salt, nor what anybody could make who does not know it."""
    other = fill(tmp_path / "other", [record(1)]).read_bytes()
    meta = b"{}".ljust(PAGE, b"\0")
    forged = b"".join([other[PAGE : 4 * PAGE], Head(3, 0, 2, sum_of(meta)).pack(bytes(16)), meta, MAGIC.ljust(PAGE)])
    trap = Written("push", {}, forged * 200)
    path = fill(tmp_path / "this", [trap, record(2)])
    whole = path.read_bytes()
    with path.open("r+b") as file:  # the head of a record that is not acknowledged is torn off: its payload is scanned
        file.seek(PAGE)
        file.write(bytes(PAGE))
        file.truncate(whole.index(forged) + len(trap.payload))
    acknowledge(tmp_path / "this", 0)
    assert reopened(tmp_path / "this") == []


def segments(folder: Path) -> list[Path]:
    """Three, of two records each."""
    with opened(folder) as journal:
        for number in range(1, 7):
            append(journal, record(number))
            if number in {2, 4}:
                journal.start_segment()
    return sorted(folder.glob("*.optj"))


@pytest.mark.parametrize(("number", "missing"), [(0, "Records 1 to 2 "), (1, "Record 3 "), (2, "Record 5 ")])
def test_a_missing_segment_is_named(tmp_path: Path, number: int, missing: str) -> None:
    segments(tmp_path)[number].unlink()
    assert missing in refused(tmp_path).detail


def test_a_journal_without_any_segment_is_not_a_new_one(tmp_path: Path) -> None:
    for path in segments(tmp_path):
        path.unlink()
    assert "Records 1 to 6 are missing" in refused(tmp_path).detail


@pytest.mark.parametrize("number", [0, 2])
def test_a_segment_of_another_format_a_foreign_file_and_a_renamed_one_are_refused(tmp_path: Path, number: int) -> None:
    path = segments(tmp_path)[number]
    whole = path.read_bytes()
    opening = bytearray(Opening(bytes(16), 2 * number + 1).pack())
    opening[8] = 2
    newer = bytes(opening[:-8]) + sum_of(bytes(opening[:-8])).to_bytes(8, "little")
    for content, said in [
        (newer + whole[PAGE:], "format 2"),
        (b"PK\3\4" + whole[4:], "no segment"),
        (b"", "no segment"),
        (whole[:100], "no segment"),
        (whole[:20] + b"\0\1\2\3" + whole[24:], "first page of a segment is damaged"),
        (Opening(bytes(16), 77).pack() + whole[PAGE:], "begins with record 77"),
    ]:
        path.write_bytes(content)
        problem = refused(tmp_path)
        assert said in problem.detail
        assert problem.evidence == {"file": path.name, "offset": 0}
        assert str(tmp_path) not in problem.detail


def test_a_file_that_only_looks_like_a_segment_is_named(tmp_path: Path) -> None:
    segments(tmp_path)
    (tmp_path / "journal-copy.optj").write_bytes(b"")
    assert refused(tmp_path).evidence["file"] == "journal-copy.optj"


def test_what_a_crash_left_of_a_segment_in_the_making_is_removed(tmp_path: Path) -> None:
    segments(tmp_path)
    left = tmp_path / "journal-00000000000000000007.new"
    left.write_bytes(os.urandom(100))
    with opened(tmp_path) as journal:
        assert len(read(journal)) == 6
    assert not left.exists()
