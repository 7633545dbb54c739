"""One step, optimd's beside its floor and its peers', in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from statistics import median
from typing import NamedTuple

from cases import Case
from figures import milliseconds, show, summary, write
from interleaved import Block, Contender, Samples, take_turns

OPTIMD, RAW, FUSED = "optimd", "raw sockets", "fused AdamW"
HOSTS = (OPTIMD, RAW, FUSED)
FLOOR = "floor: both"
COLUMNS = ("one step", "median ms", "quartiles", "p99 ms", "× floor", "× optimd", "steps")
ENOUGH_FOR_P99 = 500


def compare(
    name: str, case: Case, peers: Sequence[Contender], rounds: int, optimd_steps: int = 1, floor_steps: int = 1
) -> None:
    """Measure optimd, its floor and these peers in turns, print one table, and write ``out/<name>.json``.

    Args:
      rounds: with each peer.   optimd_steps, floor_steps: in each of their turns.
    """
    hosts = [
        Contender(OPTIMD, "optimd_sdk", optimd_steps),
        Contender(RAW, "raw_sockets", floor_steps),
        Contender(FUSED, "fused_adamw", floor_steps),
    ]
    report(name, case, take_turns(case, hosts, peers, rounds))


def report(name: str, case: Case, blocks: Sequence[Block]) -> None:
    """Print and write what came out of the turns."""
    whole: Samples = {}
    for row, taken in chain.from_iterable(block.samples.items() for block in blocks):
        whole.setdefault(row, []).extend(taken)
    best = _Best(*(_fastest(whole, start) for start in HOSTS))
    rows = list(_rows(blocks, whole, best))
    absent = dict(chain.from_iterable(block.absent.items() for block in blocks))
    unmeasured = [[row, why, *[""] * (len(COLUMNS) - 2)] for row, why in absent.items()]
    show(case.title, COLUMNS, [row.cells() for row in rows] + unmeasured)
    figures = {row.name: row.told | row.beside._asdict() for row in rows}
    ways = {row: summary(taken) for row, taken in whole.items() if row.startswith((RAW, FUSED))}
    write(name, {"case": asdict(case), "rows": figures, "absent": absent, "ways_of_the_floor": ways})


def _fastest(samples: Samples, start: str) -> str:
    """Of the rows that start so, the one with the least median: no floor may be higher than it need be."""
    rows = [row for row in samples if row.startswith(start)]
    return min(rows, key=lambda row: median(samples[row]), default="")


def _rows(blocks: Sequence[Block], whole: Samples, best: _Best) -> Iterator[_Row]:
    """Rows of optimd and the floor, of all blocks together; then each peer, beside what those took in its own block."""
    beside = best.medians(whole)
    for row in whole:
        if row.startswith(OPTIMD) or row in best:
            yield _Row(row, summary(whole[row]), beside)
    if beside.floor_s is not None:
        yield _Row(FLOOR, {"median_s": beside.floor_s}, beside)
    for block in blocks:
        for row, taken in block.samples.items():
            if not row.startswith(HOSTS):
                yield _Row(row, summary(taken), best.medians(block.samples))


class _Beside(NamedTuple):
    """Medians to compare with, where they were measured."""

    floor_s: float | None
    optimd_s: float | None


class _Best(NamedTuple):
    """The fastest row of each host; empty where none was measured."""

    optimd: str
    raw: str
    fused: str

    def medians(self, samples: Samples) -> _Beside:
        optimd, raw, fused = (median(samples[row]) if row in samples else None for row in self)
        return _Beside(None if raw is None or fused is None else raw + fused, optimd)


class _Row(NamedTuple):
    name: str
    told: dict[str, float]
    beside: _Beside

    def cells(self) -> list[str]:
        told, middle = self.told, self.told["median_s"]
        quartiles = f"{milliseconds(told['q1_s'])} – {milliseconds(told['q3_s'])}" if "q1_s" in told else ""
        steps = told.get("samples", 0)
        p99 = milliseconds(told["p99_s"]) if steps >= ENOUGH_FOR_P99 else ""
        ratios = ["" if beside is None else f"{middle / beside:.2f}" for beside in self.beside]
        return [self.name, milliseconds(middle), quartiles, p99, *ratios, f"{steps:,}" if steps else ""]
