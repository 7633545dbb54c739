"""Disks that are full or fail, and processes that are killed: what was acknowledged is there, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_subject import PIECE, append, fail, opened, read, record, reopened

from optimd_service.errors import DiskFull, JournalFailed
from optimd_service.store import segment as segments
from optimd_service.store.journal import Journal
from optimd_service.store.segment import first_of

SIZES = pytest.mark.parametrize("nbytes", [100, 2 * PIECE], ids=["small", "large"])
CHILD = Path(__file__).with_name("journal_child.py")
# At which time the child is killed, where the second would be before its first record.
LATER = {"disk.write": 12, "disk.sync": 6}
POINTS = [
    *("disk.reserve", "disk.write", "disk.sync", "disk.cut", "journal.mid_payload", "journal.before_meta"),
    *("journal.before_head", "journal.before_write", "journal.before_sync", "journal.after_sync", "journal.after_mark"),
    *("journal.before_segment", "journal.before_rename", "journal.before_unlink"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(mounted)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def append_for_ever(journal: Journal, nbytes: int) -> None:
    while True:
        append(journal, record(journal.seq + 1, nbytes))


@SIZES
def test_a_full_disk_is_told_and_training_goes_on_when_there_is_room(small_disk: Path, nbytes: int) -> None:
    filler = small_disk / "filler"
    with opened(small_disk / "journal") as journal:
        append(journal, record(1, nbytes))
        room = os.statvfs(small_disk)
        filler.write_bytes(bytes(room.f_bavail * room.f_bsize))
        with pytest.raises(DiskFull, match="Try again"):
            append_for_ever(journal, nbytes)
        kept = journal.seq
        filler.unlink()
        assert append(journal, record(kept + 1, nbytes)) == kept + 1
        assert read(journal) == [record(number, nbytes) for number in range(1, kept + 2)]
    assert len(reopened(small_disk / "journal")) == kept + 1


def test_a_record_fits_where_more_room_ahead_would_not(small_disk: Path) -> None:
    with opened(small_disk / "journal") as journal:
        with pytest.raises(DiskFull):
            append_for_ever(journal, 40_000)
        room = os.statvfs(small_disk)
        assert room.f_bavail * room.f_bsize < 60_000
        assert len(read(journal)) == journal.seq > 300


@SIZES
@pytest.mark.parametrize("point", ["disk.write", "disk.sync", "journal.before_sync"])
@pytest.mark.parametrize(("action", "problem"), [("enospc", DiskFull), ("eio", JournalFailed)])
def test_what_the_disk_did_not_take_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, point: str, action: str, problem: type[Exception]
) -> None:
    with opened(tmp_path) as journal:
        append(journal, record(1, nbytes))
        fail(monkeypatch, f"{point}={action}")
        for _ in range(3):
            with pytest.raises(problem):
                append(journal, record(9, nbytes))
        fail(monkeypatch, "")
        assert journal.seq == 1
        assert append(journal, record(2, nbytes)) == 2
        assert read(journal) == [record(1, nbytes), record(2, nbytes)]
    assert reopened(tmp_path) == [record(1, nbytes), record(2, nbytes)]


def test_a_failed_sync_is_not_repeated_on_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says once that pages were lost, and then calls them clean."""
    with opened(tmp_path) as journal:
        append(journal, record(1))
        fail(monkeypatch, "disk.sync=eio;disk.cut=eio")
        with pytest.raises(JournalFailed):
            append(journal, record(8))
        fail(monkeypatch, "")
        (failed,) = tmp_path.glob("*.optj")
        size = failed.stat().st_size
        append(journal, record(2))
        assert len(list(tmp_path.glob("*.optj"))) == 2
        assert failed.stat().st_size <= size
    assert reopened(tmp_path) == [record(1), record(2)]


def test_a_record_that_could_not_be_cut_off_ends_where_the_next_segment_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as journal:
        append(journal, record(1))
        fail(monkeypatch, "journal.before_sync=eio;disk.cut=eio")
        with pytest.raises(JournalFailed):
            append(journal, record(8))
        fail(monkeypatch, "disk.cut=eio")
        assert append(journal, record(2)) == 2
        assert read(journal) == [record(1), record(2)]
    fail(monkeypatch, "")
    assert reopened(tmp_path) == [record(1), record(2)]


@pytest.mark.parametrize("before", [0, 1], ids=["an empty segment", "one with records"])
@pytest.mark.parametrize("at", ["disk.sync=eio", "journal.before_rename=eio", "the folder"])
def test_a_segment_that_could_not_be_begun_is_begun_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, at: str
) -> None:
    wanted = [record(number) for number in range(1, before + 1)]
    with opened(tmp_path) as journal:
        for each in wanted:
            append(journal, each)
        fail(monkeypatch, "journal.before_sync=eio")
        with pytest.raises(JournalFailed):
            append(journal, record(9))
        fail(monkeypatch, "" if at == "the folder" else at)
        with monkeypatch.context() as broken:
            if at == "the folder":
                broken.setattr(segments, "sync_folder", no_folder)
            for call in (journal.start_segment, lambda: journal.begin(10)):
                with pytest.raises(JournalFailed):
                    call()
        fail(monkeypatch, "")
        append(journal, record(7))
        assert read(journal) == [*wanted, record(7)]
    assert reopened(tmp_path) == [*wanted, record(7)]


def no_folder(_folder: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_checkpoint_that_finds_no_room_for_a_segment_stops_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as journal:
        append(journal, record(1))
        monkeypatch.setattr(segments, "sync_folder", no_folder)
        with pytest.raises(JournalFailed):
            journal.start_segment()
        monkeypatch.undo()
        assert append(journal, record(2)) == 2
    assert reopened(tmp_path) == [record(1), record(2)]


def test_a_disk_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file where a folder belongs")
    with pytest.raises(JournalFailed, match="disk failed"), opened(tmp_path / "journal"):
        pass


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each point, in which a process committed records until it was killed there."""
    root = tmp_path_factory.mktemp("killed")
    points = [f"{point}={LATER.get(point, 2)}" for point in POINTS]
    subprocess.run([sys.executable, CHILD, root, *points], check=True, timeout=120)
    return root


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_nothing_acknowledged_and_leaves_no_half_record(killed: Path, point: str) -> None:
    folder = killed / point
    assert (killed / f"{point}.ended").read_text() == str(-signal.SIGKILL)
    acknowledged = (killed / f"{point}.acknowledged").stat().st_size
    dropped = first_of(min(folder.glob("*.optj"))) - 1
    with opened(folder) as journal:
        found = read(journal, after=dropped)
        assert journal.seq in {acknowledged, acknowledged + 1}
        assert found == [record(number, size_of(number)) for number in range(dropped + 1, journal.seq + 1)]
        append(journal, record(99))


def size_of(number: int) -> int:
    """Of the child's records: small and large ones in turn."""
    return 2 * PIECE + 100 if number % 2 else 5000
