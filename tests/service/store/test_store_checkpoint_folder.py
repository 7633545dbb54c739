"""Which checkpoints there are, after crashes, full disks and retention."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from checkpointed import assert_holds, large, save, small

from optimd_service.errors import CheckpointCorrupt, DiskFull, JournalFailed, StepNotFound
from optimd_service.store import failpoints
from optimd_service.store.checkpoint import file_name
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.types import BufferSize


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "session")


def seqs(checkpoints: Checkpoints) -> list[int]:
    """Those that load, each as a whole."""
    return [checkpoints.load(seq).seq for seq in checkpoints.seqs()]


def damage(tmp_path: Path, seq: int, at: int = 8192) -> None:
    path = tmp_path / "session" / file_name(seq)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def save_and_be_killed(checkpoints: Checkpoints, seq: int, where: str) -> None:
    """In a process of its own, which a failpoint kills."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            failpoints._SET.update(failpoints.parse(f"{where}=kill"))
            save(checkpoints, seq, large()).run()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


UNFINISHED = ("checkpoint.write", "checkpoint.before_sync", "checkpoint.before_rename")
FINISHED = ("checkpoint.before_directory_sync", "checkpoint.after_directory_sync")


@pytest.mark.parametrize("where", [*UNFINISHED, *FINISHED])
def test_a_kill_leaves_a_whole_checkpoint_or_none(checkpoints: Checkpoints, tmp_path: Path, where: str) -> None:
    working = small()
    save(checkpoints, 1, working).run()
    save_and_be_killed(checkpoints, 2, where)
    assert len(list((tmp_path / "session").iterdir())) == 2
    checkpoints = Checkpoints(tmp_path / "session")
    assert len(list((tmp_path / "session").iterdir())) == len(checkpoints.seqs())
    assert seqs(checkpoints) == ([1] if where in UNFINISHED else [1, 2])
    assert_holds(checkpoints.load(1), working)


@pytest.mark.parametrize("where", ["checkpoint.write", "checkpoint.before_sync"])
@pytest.mark.parametrize(("action", "error"), [("enospc", DiskFull), ("eio", JournalFailed)])
def test_a_disk_that_fails_leaves_the_older_checkpoints(
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    action: str,
    error: type[Exception],
) -> None:
    save(checkpoints, 1, small()).run()
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_SET", failpoints.parse(f"{where}={action}"))
        with pytest.raises(error):
            save(checkpoints, 2, small()).run()
    assert [file.name for file in (tmp_path / "session").iterdir()] == [file_name(1)]
    save(checkpoints, 2, small()).run()
    assert seqs(checkpoints) == [1, 2]


def test_a_disk_without_room_is_found_before_anything_is_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, small()).run()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(DiskFull):
            save(checkpoints, 2, large()).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in (tmp_path / "session").iterdir()] == [file_name(1)]


def test_the_newest_sound_one_is_found_and_those_that_are_not_are_named(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    working = small()
    save(checkpoints, 1, working).run()
    for seq in (2, 3):
        save(checkpoints, seq, small()).run()
    damage(tmp_path, 3)
    damage(tmp_path, 2, at=20)
    found = checkpoints.newest()
    assert found.checkpoint
    assert found.checkpoint.seq == 1
    assert_holds(found.checkpoint, working)
    assert [error.evidence["file"] for error in found.corrupt] == [file_name(3), file_name(2)]
    with pytest.raises(CheckpointCorrupt, match=file_name(3)):
        checkpoints.load(3)
    damage(tmp_path, 1)
    assert checkpoints.newest().checkpoint is None


def test_the_newest_up_to_a_record_is_found(checkpoints: Checkpoints) -> None:
    for seq in (0, 4, 9):
        save(checkpoints, seq, small()).run()
    found = [checkpoints.newest(until).checkpoint for until in (0, 8, 9, 100)]
    assert [checkpoint and checkpoint.seq for checkpoint in found] == [0, 4, 9, 9]


def test_the_newest_and_the_labelled_are_kept(checkpoints: Checkpoints) -> None:
    for seq in range(1, 7):
        save(checkpoints, seq, small(), {2: "start", 6: "end"}.get(seq)).run()
    assert checkpoints.retain(2) == [1, 3, 4]
    assert seqs(checkpoints) == [2, 5, 6]
    assert checkpoints.retain(2) == []
    assert [info.labels for info in checkpoints.infos()] == [("start",), (), ("end",)]


def test_one_that_cannot_be_read_is_not_counted_and_goes_when_a_newer_one_is_sound(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for seq in (1, 2, 3):
        save(checkpoints, seq, small()).run()
    damage(tmp_path, 3, at=20)
    assert [info.seq for info in checkpoints.infos()] == [1, 2]
    assert checkpoints.retain(1) == [1]
    assert checkpoints.seqs() == [2, 3]
    save(checkpoints, 4, small()).run()
    assert checkpoints.retain(1) == [2, 3]


def test_where_none_is_sound_none_is_removed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, small()).run()
    damage(tmp_path, 1, at=20)
    assert checkpoints.retain(1) == []
    assert checkpoints.seqs() == [1]


def test_a_checkpoint_made_again_keeps_its_labels(checkpoints: Checkpoints) -> None:
    for label in ("first", None, "second", "first"):
        save(checkpoints, 5, small(), label).run()
    assert [info.labels for info in checkpoints.infos()] == [("first", "second")]


def test_one_that_is_removed_or_never_was_is_not_found(checkpoints: Checkpoints) -> None:
    save(checkpoints, 5, small()).run()
    for _ in range(2):
        checkpoints.remove(5)
    with pytest.raises(StepNotFound):
        checkpoints.load(5)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("journal-1.optj", "checkpoint-12.safetensors", "synced"):
        (tmp_path / name).write_bytes(b"theirs")
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, small()).run()
    checkpoints.retain(1)
    assert checkpoints.seqs() == [5]
    assert len(list(tmp_path.iterdir())) == 4


def test_listing_reads_headers_alone(checkpoints: Checkpoints, tmp_path: Path) -> None:
    info = save(checkpoints, 5, small()).run()
    damage(tmp_path, 5)
    assert checkpoints.infos() == [info]
    assert info
    assert info.buffers["state.codes"] == BufferSize(9, torch.uint8)
    assert info.nbytes == (tmp_path / "session" / file_name(5)).stat().st_size
