"""Seconds of a step, push + AdamW + pull through the SDK, from a million float32 parameters to 500 million.

    python benchmarks/linear.py [--sizes N …] [--rounds N] [--transport tcp|uds]

The line seconds = a + b · parameters is the one with the least sum of squared errors, each relative to its measured
time, so that the small sizes count as much as the large ones. Each size has a server process and a client process of
its own; the largest needs 12 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

import numpy as np

from cases import TRANSPORTS, Case
from figures import milliseconds, show, summary, write
from interleaved import Contender, take_turns

SIZES = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 250_000_000, 500_000_000]
COLUMNS = ("parameters", "median ms", "quartiles", "ms a million", "line ms", "off the line")
MILLION = 1_000_000


def main() -> None:
    """Measure, print one table and the line, and write benchmarks/out/linear.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    asked = parser.parse_args()
    samples = {size: _step_seconds(Case(size, transport=asked.transport), asked.rounds) for size in asked.sizes}
    at_zero, slope = fit(asked.sizes, [median(taken) for taken in samples.values()])
    line = {size: at_zero + slope * size for size in asked.sizes}
    rows = [_cells(size, taken, line[size]) for size, taken in samples.items()]
    fitted = f"{1e3 * at_zero:.2f} ms + {1e3 * slope * MILLION:.3f} ms per million parameters"
    show(f"one step, f32, {asked.transport}: {fitted}", COLUMNS, rows)
    told = {size: summary(taken) | {"line_s": line[size]} for size, taken in samples.items()}
    write("linear", {"settings": vars(asked), "a_s": at_zero, "b_s": slope, "sizes": told})


def _step_seconds(case: Case, rounds: int) -> list[float]:
    (block,) = take_turns(case, [Contender("optimd", "optimd_sdk", steps=1)], [], rounds)
    return block.samples["optimd"]


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """A and b of seconds ≈ a + b · size, with the least relative squared error."""
    weights = 1 / np.asarray(seconds)
    columns = np.stack([weights, weights * np.asarray(sizes, dtype=np.float64)], axis=1)
    (at_zero, slope), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    return float(at_zero), float(slope)


def _cells(size: int, taken: list[float], line: float) -> list[str]:
    told = summary(taken)
    middle = told["median_s"]
    quartiles = f"{milliseconds(told['q1_s'])} – {milliseconds(told['q3_s'])}"
    each = f"{1e3 * middle * MILLION / size:.3f}"
    return [f"{size:,}", milliseconds(middle), quartiles, each, milliseconds(line), f"{middle / line - 1:+.0%}"]


if __name__ == "__main__":
    main()
