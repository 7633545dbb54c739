"""Files hold what was written, whatever of it went past the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from optimd_service.errors import DiskFull, JournalFailed, Problem
from optimd_service.store.disk import PAGE, File, aligned, translated

CONTENT = bytes(range(251)) * 20_000
CUTS = (0, 1, PAGE - 1, PAGE, 3 * PAGE + 5, 2**20 + PAGE, len(CONTENT) - 1, len(CONTENT))


def written(path: Path, memory: Callable[[bytes], memoryview]) -> bytes:
    """What a file and its reader say it holds, of pieces that were written last one first."""
    file = File(path, new=True)
    for start, stop in reversed([*pairwise(CUTS)]):
        file.write(start, memory(CONTENT[start:stop]))
    place = memory(bytes(len(CONTENT) + 10))
    assert file.read_into(0, place) == len(CONTENT)
    assert place[: len(CONTENT)] == CONTENT
    assert file.read_into(PAGE, place) == len(CONTENT) - PAGE
    file.close()
    file.close()
    return path.read_bytes()


def at_a_page(content: bytes) -> memoryview:
    memory = aligned(len(content))
    memory[:] = content
    return memory


def elsewhere(content: bytes) -> memoryview:
    return at_a_page(bytes(64) + content)[64:]


@pytest.mark.parametrize("memory", [at_a_page, elsewhere])
def test_pieces_of_any_size_at_any_place_are_kept(tmp_path: Path, memory: Callable[[bytes], memoryview]) -> None:
    assert written(tmp_path / "file", memory) == CONTENT


@pytest.mark.parametrize("memory", [at_a_page, elsewhere])
def test_a_file_system_without_direct_writes_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Callable[[bytes], memoryview]
) -> None:
    opened = os.open
    refused = []

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    assert written(tmp_path / "file", memory) == CONTENT
    assert refused


@pytest.mark.parametrize("memory", [at_a_page, elsewhere])
def test_a_disk_that_wants_more_than_whole_pages_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Callable[[bytes], memoryview]
) -> None:
    direct = set()
    opened, wrote = os.open, os.pwrite

    def watch(path: Any, flags: int, *more: Any) -> int:
        fd = opened(path, flags & ~os.O_DIRECT, *more)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def refuse(fd: int, piece: memoryview, at: int) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return wrote(fd, piece, at)

    monkeypatch.setattr(os, "open", watch)
    monkeypatch.setattr(os, "pwrite", refuse)
    assert written(tmp_path / "file", memory) == CONTENT
    assert direct


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EIO, JournalFailed),
        (errno.EROFS, JournalFailed),
    ],
)
def test_what_the_disk_says_becomes_what_to_do(code: int, problem: type[Problem]) -> None:
    with pytest.raises(problem, match="again") as told, translated():
        raise OSError(code, os.strerror(code), "/a/path")
    assert "/a/path" not in told.value.detail
