"""F6 to F9: the disk gives back less than it was given, or other bits; it is full, or fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from faulted import LARGE_TASK, SMALL_TASK, Training, assert_refused

from crashing_server import CrashingServer, wait_for
from torch_replay import Task

PAGE = 4096
TASKS = pytest.mark.parametrize("task", [SMALL_TASK, LARGE_TASK], ids=lambda task: task.name)


def newest(training: Training, pattern: str) -> Path:
    return sorted(training.folder.glob(pattern))[-1]


def flip(file: Path, at: int) -> None:
    """One bit."""
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


@TASKS
def test_a_journal_cut_in_a_push_that_nobody_was_told_of_ends_before_it(server: CrashingServer, task: Task) -> None:
    """Cuts at every byte, without a server, are test_store_journal_torn.py's."""
    training = Training(server, task).begin()
    training.train(2)
    before = training.seen()
    for keeps in (0, 1, PAGE, PAGE + 1, -PAGE, -1):  # bytes of the record, or all but so many
        server.start_again("journal.before_sync=kill@1")
        journal = newest(training, "journal-*")
        end = journal.stat().st_size  # of the records, once a server has started
        with pytest.raises(httpx.TransportError):
            training.push()
        server.await_end()
        written = journal.read_bytes().rstrip(b"\0")
        assert len(written) > end + PAGE
        os.truncate(journal, end + keeps if keeps >= 0 else len(written) + keeps)
        server.start_again()
        assert training.seen() == before
    training.train()
    training.assert_nothing_lost()


@pytest.mark.parametrize("record", [1, 3], ids=["middle", "acknowledged tail"])
@TASKS
def test_a_flipped_bit_of_an_acknowledged_step_is_refused_by_name(
    server: CrashingServer, task: Task, record: int
) -> None:
    damaged, sound = Training(server, task).begin(), Training(server, Task("sound")).begin()
    sizes = []
    for _ in range(3):
        server.start_again()
        sizes.append(newest(damaged, "journal-*").stat().st_size)
        damaged.train()
        sound.train()
    server.crash()
    journal, begins = newest(damaged, "journal-*"), sizes[record - 1]
    flip(journal, begins + PAGE + 100)  # in the payload
    server.start()
    for reply in (damaged.push(), server.http.get(f"{damaged.path}/params")):
        told = assert_refused(reply, 503, "journal-corrupt")
        assert (told["file"], told["offset"]) == (journal.name, begins)
    sound.train()
    sound.assert_nothing_lost()
    server.crash()
    flip(journal, begins + PAGE + 100)  # as if the file were put back from a copy
    server.start()
    damaged.train()
    damaged.assert_nothing_lost()


@TASKS
def test_a_flipped_bit_in_a_checkpoint_costs_time_and_no_step(server: CrashingServer, task: Task) -> None:
    training = Training(server, task, checkpoint={"steps": 2}).begin()
    training.train(2)
    assert wait_for(lambda: len(list(training.folder.glob("checkpoint-*.safetensors"))) == 2, 30)
    training.train()
    before = training.seen()
    server.crash()
    checkpoint = newest(training, "checkpoint-*.safetensors")
    flip(checkpoint, checkpoint.stat().st_size // 2)
    server.start()
    assert training.seen() == before
    assert checkpoint.name in server.output()
    training.train()
    training.assert_nothing_lost()


@TASKS
@pytest.mark.parametrize(
    ("failing", "status", "slug"),
    [
        ("disk.reserve=enospc@1;disk.write=enospc@1", 507, "disk-full"),
        ("journal.before_write=enospc@1;journal.mid_payload=enospc@1", 507, "disk-full"),
        ("journal.before_write=eio@1;journal.mid_payload=eio@1", 503, "journal-failed"),
        ("disk.sync=eio@1", 503, "journal-failed"),
        ("journal.after_sync=eio@1", 503, "journal-failed"),
    ],
)
def test_a_disk_that_fails_a_step_changes_nothing_and_training_goes_on(
    server: CrashingServer, task: Task, failing: str, status: int, slug: str
) -> None:
    training = Training(server, task).begin()
    training.train(2)
    before = training.seen()
    server.start_again(failing)
    refusals = 0
    while (reply := training.push()).status_code != 200:
        assert_refused(reply, status, slug)
        assert training.seen() == before
        refusals += 1
    assert 1 <= refusals <= failing.count("@")
    assert not reply.json()["receipt"]["duplicate"]
    training.acknowledged.append(training.next)
    after = training.seen()
    server.start_again()
    assert training.seen() == after
    training.assert_nothing_lost()


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with ballast.open("wb", buffering=0) as full, suppress(OSError):
        while True:
            full.write(bytes(2**16))


@TASKS
def test_a_full_disk_takes_no_step_and_acknowledges_none_until_there_is_room(little_disk: Path, task: Task) -> None:
    ballast = little_disk / "ballast"
    with CrashingServer(little_disk / "data") as server:
        training = Training(server, task).begin()
        training.train(2)
        fill(ballast)
        while (reply := training.push()).status_code == 200:  # there may be room taken ahead
            training.acknowledged.append(training.next)
        before = training.seen()
        for _ in range(3):
            assert_refused(reply, 507, "disk-full")
            assert training.seen() == before
            reply = training.push()
        server.crash()
        ballast.unlink()
        server.start()
        assert training.seen() == before
        training.train()
        training.assert_nothing_lost()
