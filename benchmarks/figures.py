"""What every benchmark leaves: one table on the terminal, and one JSON file with the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

FILE_COLUMNS = 120
"""Wide enough for every table, where there is no terminal to ask."""
T = TypeVar("T")
OUT = Path(os.environ.get("BENCH_OUT") or Path(__file__).parent / "out")


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, extremes and 99th percentile, in seconds, and how many there were."""
    if len(seconds) == 1:
        seconds = [*seconds, *seconds]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "median_s": statistics.median(seconds),
        "q1_s": cuts[24],
        "q3_s": cuts[74],
        "p99_s": cuts[98],
        "min_s": min(seconds),
        "max_s": max(seconds),
        "samples": len(seconds),
    }


def milliseconds(seconds: float) -> str:
    """Three figures or so, which is more than such a measurement is worth."""
    ms = 1e3 * seconds
    return f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def progress(items: Iterable[T], what: str) -> Iterable[T]:
    """The same items, with a bar on a terminal while they are gone through."""
    return track(items, what, transient=True, disable=not sys.stdout.isatty())


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; every column but the first stands to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else FILE_COLUMNS).print(table)


def write(name: str, figures: Mapping[str, Any]) -> None:
    """Write ``out/<name>.json``."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), **figures}
    (OUT / f"{name}.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "cpu": _of("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _of(path: str, field: str) -> str:
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), "unknown")
