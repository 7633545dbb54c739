"""One update of 25 million float32 parameters, by every element-wise optimizer, beside torch's fused AdamW.

    python benchmarks/updates.py [--parameters N] [--rounds N] [--threads N] [--optimizers NAME …]

Every optimizer, with its default settings, takes turns with ``torch.optim.AdamW(fused=True).step()`` on as many
threads, medians over all rounds. Below, AdamW on 2,000 tensors takes turns with AdamW on one tensor of the same total,
and so does torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.update import update_
from optimd_service.session.arithmetic import Lane
from optimd_service.types import Layout, TensorSpec

OUT = Path(__file__).parent / "out"
TENSORS = 2_000
Step = Callable[[], object]


class Pair(NamedTuple):
    """Median milliseconds of an update, and of what it took turns with."""

    name: str
    ours_ms: float
    beside_ms: float

    @property
    def ratio(self) -> float:
        return self.ours_ms / self.beside_ms


def our_step(optimizer: Optimizer[Any], shapes: Sequence[int], grads: Tensor, place: Lane) -> Step:
    """An update of all groups of a layout, as a session's push does it, its clock and its checks aside."""
    specs = [TensorSpec(f"t{i}", (length,)) for i, length in enumerate(shapes)]
    layout = Layout.arrange(specs, ["default"], torch.float32)
    hyper = optimizer.hyperparameters()
    weights = torch.randn(layout.numel)
    state = {name: torch.zeros(layout.numel) for name in optimizer.state(hyper)}
    whole = FlatGroup(weights, grads, state, 0, numbers=dict(optimizer.numbers))

    def step() -> None:
        nonlocal whole
        whole = whole._replace(step=whole.step + 1, fresh=whole.step == 0)
        for span in layout.groups.values():
            update_(optimizer, whole.part(*span), hyper, place)

    return step


def torch_step(shapes: Sequence[int], grads: Tensor) -> Step:
    """AdamW by torch's fused kernel, on tensors of these lengths."""
    weights = [torch.randn(length, requires_grad=True) for length in shapes]
    for tensor, grad in zip(weights, grads.split(list(shapes)), strict=True):
        tensor.grad = grad
    return torch.optim.AdamW(weights, fused=True).step


def take_turns(first: Step, second: Step, rounds: int) -> tuple[float, float]:
    """Median milliseconds of each; both are run once before anything is timed."""
    taken: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for _ in range(rounds):
        for step, times in zip((first, second), taken, strict=True):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[0]), statistics.median(taken[1])


def main() -> None:
    """Measure, print two tables, and write benchmarks/out/updates.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    element_wise = [name for name, optimizer in OPTIMIZERS.items() if optimizer.shapes is None]
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizers", nargs="*", choices=element_wise, default=element_wise, metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    grads = torch.randn(asked.parameters)
    whole, pieces = [asked.parameters], [asked.parameters // TENSORS] * TENSORS
    place = Lane("benchmark", threads=1, workers=asked.threads)
    try:
        theirs = torch_step(whole, grads)
        updates = [
            Pair(name, *take_turns(our_step(OPTIMIZERS[name], whole, grads, place), theirs, asked.rounds))
            for name in asked.optimizers
        ]
        of_pieces = grads[: sum(pieces)]
        adamw = (our_step(OPTIMIZERS["adamw"], shapes, of_pieces, place) for shapes in (pieces, [sum(pieces)]))
        fused = (torch_step(shapes, of_pieces) for shapes in (pieces, [sum(pieces)]))
        layouts = [Pair("optimd", *take_turns(*adamw, asked.rounds)), Pair("torch", *take_turns(*fused, asked.rounds))]
    finally:
        place.close()
    report(asked, updates, layouts)


def report(asked: argparse.Namespace, updates: Sequence[Pair], layouts: Sequence[Pair]) -> None:
    """Print and write the figures."""
    title = f"one update, {asked.parameters:,} float32 parameters, {asked.threads} threads"
    show(title, ("", "median ms", "torch's fused AdamW", "ratio"), updates)
    each = asked.parameters // TENSORS
    show(f"AdamW, {TENSORS:,} tensors of {each:,}", ("", "median ms", "as one tensor", "ratio"), layouts)
    OUT.mkdir(exist_ok=True)
    figures = {
        "parameters": asked.parameters,
        "threads": asked.threads,
        "rounds": asked.rounds,
        "updates": {
            pair.name: {"median_ms": pair.ours_ms, "fused_adamw_ms": pair.beside_ms, "ratio": pair.ratio}
            for pair in updates
        },
        f"adamw_of_{TENSORS}_tensors": {
            pair.name: {"median_ms": pair.ours_ms, "as_one_tensor_ms": pair.beside_ms, "ratio": pair.ratio}
            for pair in layouts
        },
    }
    (OUT / "updates.json").write_text(json.dumps(figures, indent=2))


def show(title: str, columns: Sequence[str], pairs: Sequence[Pair]) -> None:
    """Print one table, a row a pair."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for pair in pairs:
        table.add_row(pair.name, f"{pair.ours_ms:.2f}", f"{pair.beside_ms:.2f}", f"{pair.ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
