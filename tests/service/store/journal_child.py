"""Commits records until it is killed: for each POINT=N of the command line in a process of its own.

    python journal_child.py ROOT POINT=N …

The journal is ROOT/POINT; ROOT/POINT.acknowledged grows by a byte with each record that was acknowledged, and
ROOT/POINT.ended says how the process did.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from journal_subject import PIECE, append, opened, record

from optimd_service.store import failpoints


def commit_records(folder: Path, acknowledged: int) -> None:
    """Seven, small and large ones in turn, with a checkpoint after the second and the fourth."""
    with opened(folder) as journal:
        for number in range(1, 8):
            append(journal, record(number, 2 * PIECE + 100 if number % 2 else 5000))
            os.write(acknowledged, b".")
            if number in {2, 4}:
                journal.start_segment()
        journal.drop_before(4)


def main(root: Path, points: list[str]) -> None:
    """Fork for each, before any thread begins: importing torch takes longer than all of them."""
    for spec in points:
        point, nth = spec.split("=")
        child = os.fork()
        if not child:
            failpoints._SET = failpoints.parse(f"{point}=kill@{nth}")
            commit_records(root / point, os.open(root / f"{point}.acknowledged", os.O_WRONLY | os.O_CREAT))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        (root / f"{point}.ended").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
