"""One update of 25 million float32 parameters, by every optimizer as a session runs it, beside torch's fused AdamW.

    python benchmarks/updates.py [--parameters N] [--rounds N] [--threads N] [--optimizers NAME …] [--tensor-wise]

Every optimizer, with its default settings, takes turns with ``torch.optim.AdamW(fused=True).step()`` on as many
threads, medians over all rounds; ours include the norms of the receipt. Some have a second row with other settings.
Below, AdamW on 2,000 tensors takes turns with AdamW on one tensor of the same total, and so does torch's. With
``--tensor-wise`` the optimizers that look at tensors one by one update as many parameters in matrices of 1000 × 1000;
some take seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from figures import show, write
from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.session.arithmetic import Lane
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.description import read_description
from optimd_service.session.updating import update_groups_
from optimd_service.store.contract import Working
from optimd_service.types import Buffers, BufferSize

TENSORS = 2_000
SIDE = 1_000
PAUSE_S = 0.02
# Beside the defaults: optimizer → what the row is called, hyperparameters, fields of the session.
MORE: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "sgd": [("sgd, momentum", {"momentum": 0.9}, {})],
    "adam": [("adam, amsgrad", {"amsgrad": True}, {})],
    "adamw": [
        ("adamw, bf16 gradients", {}, {"grad_dtype": "BF16"}),
        ("adamw, bf16 state", {}, {"state_dtype": "bf16"}),
        ("adamw, 8bit state", {}, {"state_dtype": "8bit"}),
    ],
}
Step = Callable[[], object]
Shape = tuple[int, ...]


class Pair(NamedTuple):
    """Median milliseconds of an update, and of what it took turns with."""

    name: str
    ours_ms: float
    beside_ms: float

    @property
    def ratio(self) -> float:
        return self.ours_ms / self.beside_ms

    def cells(self) -> list[str]:
        return [self.name, f"{self.ours_ms:.2f}", f"{self.beside_ms:.2f}", f"{self.ratio:.2f}"]


class Arena:
    """Flat memory that every update works in: where pages happen to lie decides more than half of a figure.

    Attributes: grads, weights: shape [n].
    """

    def __init__(self, numel: int) -> None:
        self.grads, self.weights = torch.randn(numel), torch.randn(numel)
        self._kept: list[Tensor] = []

    def state(self, sizes: Buffers) -> dict[str, Tensor]:
        """Zeroed buffers; those of float32 the same as for the optimizer before, as far as they go."""
        plain = [name for name, size in sizes.items() if size == BufferSize(len(self.weights), torch.float32)]
        self._kept += [torch.zeros_like(self.weights) for _ in range(len(plain) - len(self._kept))]
        shared = dict(zip(plain, (flat.zero_() for flat in self._kept), strict=False))
        return shared | {n: torch.zeros(s.numel, dtype=s.dtype) for n, s in sizes.items() if n not in shared}


def our_step(
    optimizer: str, hyper: dict[str, Any], fields: dict[str, Any], shapes: Sequence[Shape], arena: Arena, place: Lane
) -> Step:
    """An update of all groups of a session, as its push does it once the gradients have arrived and been judged."""
    tensors = [{"name": f"t{i}", "shape": list(shape)} for i, shape in enumerate(shapes)]
    description = {"optimizer": {"name": optimizer, **hyper}, "tensors": tensors, **fields}
    plan = Blueprint.draw(read_description(description), None).plan
    grads = arena.grads.to(plan.grads.dtype)
    working = Working(arena.weights, arena.state(plan.buffers), 0, set(), {})
    return lambda: update_groups_(working, grads, plan, plan.settings.resolved, place)


def torch_step(shapes: Sequence[Shape], arena: Arena) -> Step:
    """AdamW by torch's fused kernel, on tensors of these shapes."""
    lengths = [math.prod(shape) for shape in shapes]
    moments = arena.state({name: BufferSize(sum(lengths), torch.float32) for name in ("exp_avg", "exp_avg_sq")})
    flats = {"params": arena.weights, "grads": arena.grads, **moments}
    parts = {
        name: [part.view(shape) for part, shape in zip(flat.split(lengths), shapes, strict=True)]
        for name, flat in flats.items()
    }
    weights = [torch.nn.Parameter(part, requires_grad=True) for part in parts["params"]]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for weight, grad, exp_avg, exp_avg_sq in zip(
        weights, parts["grads"], parts["exp_avg"], parts["exp_avg_sq"], strict=True
    ):
        weight.grad = grad
        optimizer.state[weight] = {"step": torch.zeros(()), "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return optimizer.step


def take_turns(first: Step, second: Step, rounds: int) -> tuple[float, float]:
    """Median milliseconds of each; both are run once before anything is timed."""
    taken: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for _ in range(rounds):
        for step, times in zip((first, second), taken, strict=True):
            # torch's threads spin for a while when they have nothing left to do, on cores that the next one needs.
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[0]), statistics.median(taken[1])


def main() -> None:
    """Measure, print two tables, and write benchmarks/out/updates.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizers", nargs="*", choices=list(OPTIMIZERS), default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--tensor-wise", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    place = Lane("benchmark", threads=1, workers=asked.threads)
    try:
        updates = list(measured(asked, place))
        layouts = list(by_layout(asked, place))
    finally:
        place.close()
    report(asked, updates, layouts)


def measured(asked: argparse.Namespace, place: Lane) -> Iterator[Pair]:
    """Every optimizer asked for, in turns with torch's fused AdamW."""
    matrices = [(SIDE, SIDE)] * (asked.parameters // SIDE**2)
    arena = Arena(asked.parameters)
    for name in asked.optimizers:
        tensor_wise = OPTIMIZERS[name].shapes is not None
        if tensor_wise and not asked.tensor_wise:
            continue
        shapes: Sequence[Shape] = matrices if tensor_wise else [(asked.parameters,)]
        for label, hyper, fields in [(name, {}, {}), *MORE.get(name, [])]:
            ours, theirs = our_step(name, hyper, fields, shapes, arena, place), torch_step(shapes, arena)
            yield Pair(label, *take_turns(ours, theirs, 3 if tensor_wise else asked.rounds))


def by_layout(asked: argparse.Namespace, place: Lane) -> Iterator[Pair]:
    """Many tensors in turns with one of the same total, ours and torch's."""
    length = asked.parameters // TENSORS
    layouts: list[list[Shape]] = [[(length,)] * TENSORS, [(length * TENSORS,)]]
    arena = Arena(length * TENSORS)
    ours = [our_step("adamw", {}, {}, shapes, arena, place) for shapes in layouts]
    yield Pair("optimd", *take_turns(ours[0], ours[1], asked.rounds))
    theirs = [torch_step(shapes, arena) for shapes in layouts]
    yield Pair("torch", *take_turns(theirs[0], theirs[1], asked.rounds))


def report(asked: argparse.Namespace, updates: Sequence[Pair], layouts: Sequence[Pair]) -> None:
    """Print and write the figures."""
    title = f"one update, {asked.parameters:,} float32 parameters, {asked.threads} threads"
    show(title, ("", "median ms", "torch's fused AdamW", "ratio"), [pair.cells() for pair in updates])
    title = f"AdamW, {TENSORS:,} tensors of {asked.parameters // TENSORS:,}"
    show(title, ("", "median ms", "as one tensor", "ratio"), [pair.cells() for pair in layouts])
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
    write("updates", figures)


if __name__ == "__main__":
    main()
