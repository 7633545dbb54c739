"""The journal beside plain files: write + fdatasync of the same bytes, and reading them.

    python benchmarks/journal.py [--small N] [--large N] [--total N] [--rounds N] [--sessions N]

A journal and a plain file take turns. Records of ``--small`` bytes are committed one by one by a lone session, and by
``--sessions`` at once, each in a thread of its own with a file of its own; records of ``--large`` bytes are handed over
in blocks of 4 MiB. Then ``--total`` bytes in such records are read back, and the same bytes from a plain file, both
past the page cache; the journal checks what it reads. Files lie in the folder for temporary ones (TMPDIR).
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

from figures import milliseconds, show, summary, write
from optimd_service.store.disk import aligned
from optimd_service.store.journal import Journal

BLOCK = 2**22
# Records that a turn commits.
TURN = 50
MB = 1_000_000
FIELDS = {
    "receipt": {"session": "7c9e6679f1d24c5b8a3e", "step": 1000, "base_step": 999, "outcome": "applied", "lr": 0.001},
    "facts": {"loss": 0.693, "grad_norm": 1.25, "clip_scale": 1.0, "update_norm": 0.01, "worker": "w-3"},
    "key": "5f2b8a0e-6c1f-4f4e-9b57-1f6f6f6f6f6f",
    "digest": "d41d8cd98f00b204e9800998ecf8427e",
}


class Log(Protocol):
    """Takes records, each durable when it has been appended."""

    def append(self, payload: memoryview) -> None: ...


class Plain:
    """A file that grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def append(self, payload: memoryview) -> None:
        for start in range(0, len(payload), BLOCK):
            self._file.write(payload[start : start + BLOCK])
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Journaled:
    """A journal."""

    def __init__(self, folder: Path, writers: Executor) -> None:
        self.journal = Journal.open(folder, writers)

    def append(self, payload: memoryview) -> None:
        entry = self.journal.begin(len(payload))
        for start in range(0, len(payload), BLOCK):
            entry.write(start, payload[start : start + BLOCK])
        entry.commit("push", FIELDS)

    def close(self) -> None:
        self.journal.close()


class Compared(NamedTuple):
    """Seconds of each turn, for the same work on so many bytes."""

    what: str
    nbytes: int
    ours: list[float]
    plain: list[float]


def main() -> None:
    """Measure, print one table, and write benchmarks/out/journal.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=40_000, help="bytes of a small record's payload")
    parser.add_argument("--large", type=int, default=400 * MB, help="bytes of a large record's payload")
    parser.add_argument("--total", type=int, default=1000 * MB, help="bytes to read back, of each kind")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sessions", type=int, default=16)
    asked = parser.parse_args()
    with ThreadPoolExecutor(1) as writers, TemporaryDirectory() as name:
        folder = Path(name)
        small, large = payload(asked.small), payload(asked.large)
        found = [
            lone(folder, writers, small, asked.rounds),
            together(folder, writers, small, asked.rounds, asked.sessions),
            large_records(folder, writers, large, asked.rounds),
            reading(folder, writers, small, asked.total, asked.rounds),
            reading(folder, writers, large, asked.total, asked.rounds),
        ]
    tell(found, vars(asked))


def payload(nbytes: int) -> memoryview:
    """Noise, in memory that begins at a page."""
    memory = aligned(nbytes)
    for start in range(0, nbytes, BLOCK):
        memory[start : start + BLOCK] = os.urandom(min(BLOCK, nbytes - start))
    return memory


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lone(folder: Path, writers: Executor, small: memoryview, rounds: int) -> Compared:
    """Records one after the other; seconds of one."""
    compared = Compared("a lone small record", len(small), [], [])
    with closing(Journaled(folder / "lone", writers)) as ours, closing(Plain(folder / "lone.plain")) as plain:
        for _ in range(rounds):
            for log, times in ((ours, compared.ours), (plain, compared.plain)):
                times.extend(seconds(lambda log=log: log.append(small)) for _ in range(TURN))  # type: ignore[misc]
    return compared


def together(folder: Path, writers: Executor, small: memoryview, rounds: int, sessions: int) -> Compared:
    """As many sessions as threads; seconds of one record, counted over all of them."""
    compared = Compared(f"a small record, {sessions} sessions at once", len(small), [], [])
    with ExitStack() as stack:
        ours = [stack.enter_context(closing(Journaled(folder / f"{n}", writers))) for n in range(sessions)]
        plain = [stack.enter_context(closing(Plain(folder / f"{n}.plain"))) for n in range(sessions)]
        for _ in range(rounds):
            compared.ours.append(at_once(ours, small) / (TURN * sessions))
            compared.plain.append(at_once(plain, small) / (TURN * sessions))
    return compared


def at_once(logs: list[Journaled] | list[Plain], small: memoryview) -> float:
    def session(log: Log) -> None:
        for _ in range(TURN):
            log.append(small)

    threads = [threading.Thread(target=session, args=(log,)) for log in logs]

    def all_of_them() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return seconds(all_of_them)


def large_records(folder: Path, writers: Executor, large: memoryview, rounds: int) -> Compared:
    """Each in files of its own, so that the disk holds few of them; seconds of one."""
    compared = Compared("a large record", len(large), [], [])
    for number in range(rounds):
        with TemporaryDirectory(dir=folder) as name, closing(Journaled(Path(name), writers)) as ours:
            compared.ours.append(seconds(lambda ours=ours: ours.append(large)))  # type: ignore[misc]
        plain_file = folder / f"large-{number}.plain"
        with closing(Plain(plain_file)) as plain:
            compared.plain.append(seconds(lambda plain=plain: plain.append(large)))  # type: ignore[misc]
        plain_file.unlink()
    return compared


def reading(folder: Path, writers: Executor, content: memoryview, total: int, rounds: int) -> Compared:
    """Seconds to read all."""
    count = max(1, total // len(content))
    compared = Compared(f"reading {count:,} records of {len(content):,} bytes", count * len(content), [], [])
    into = aligned(len(content))
    with TemporaryDirectory(dir=folder) as name, closing(Journaled(Path(name) / "journal", writers)) as ours:
        plain = Path(name) / "plain"
        with plain.open("wb") as file:
            for _ in range(count):
                ours.append(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        for _ in range(min(rounds, 3)):
            compared.ours.append(seconds(lambda: sum(1 for _ in ours.journal.records(0, into=into))))
            compared.plain.append(seconds(lambda: read_plainly(plain)))
    return compared


def read_plainly(path: Path) -> None:
    place, fd = aligned(BLOCK), os.open(path, os.O_RDONLY | os.O_DIRECT)
    for at in range(0, path.stat().st_size, BLOCK):
        os.preadv(fd, [place], at)
    os.close(fd)


def tell(found: list[Compared], asked: dict[str, int]) -> None:
    """The table and the file."""
    rows = []
    for each in found:
        ours, plain = statistics.median(each.ours), statistics.median(each.plain)
        rates = f"{1 / ours:,.0f}", f"{each.nbytes / MB / ours:,.0f}"
        rows.append([each.what, milliseconds(ours), milliseconds(plain), f"{ours / plain:.2f}", *rates])
    show("The journal beside plain files", ("median", "journal ms", "plain ms", "ratio", "/s", "MB/s"), rows)
    figures = {each.what: {"journal": summary(each.ours), "plain": summary(each.plain)} for each in found}
    write("journal", {"settings": asked, "rows": figures})


if __name__ == "__main__":
    main()
