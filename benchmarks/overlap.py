"""How much of the transport `RemoteOptimizer(overlap=…)` hides behind forward and backward passes.

    python benchmarks/overlap.py [--width N] [--layers N] [--batch N] [--rounds N] [--transport tcp|uds]

A stack of linear layers, computed by one thread, so that the other core is free for the transport and the server. The
batch is made so large that the backward pass takes at least as long as the transport does, which is what a step takes
longer without overlap than its forward and backward passes alone. Every row trains a model of its own, all in one
client process, in turns of several steps.

    hidden = (step without overlap − step with it) / (step without overlap − forward and backward alone)
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cases import TRANSPORTS
from figures import milliseconds, progress, show, summary, write
from optimd import RemoteOptimizer
from optimd_server import optimd_server

PAUSE_S = 0.02
BATCHES = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
TRIAL_STEPS = 2
MARGIN = 1.5
"""A backward pass is to take so many times the transport: what is measured once is measured with noise."""
ALONE, LOCAL, WITHOUT = "forward and backward alone", "local AdamW", "remote, no overlap"
OVERLAPS: dict[str, Literal["push", True]] = {"remote, overlap='push'": "push", "remote, overlap=True": True}
COLUMNS = ("one step", "median ms", "quartiles", "transport hidden")


class Training(NamedTuple):
    """A model of its own and what steps it; without an optimizer it is not stepped."""

    network: nn.Module
    optimizer: torch.optim.Optimizer | None

    def turn(self, inputs: Tensor, steps: int) -> float:
        """Seconds of a step in the middle of training: one that is not counted goes before, and leaves its weights to
        arrive in the next one's time, as the last one's arrive in the time of one that does not come.
        """
        time.sleep(PAUSE_S)
        self._step(inputs)
        began = time.perf_counter()
        for _ in range(steps):
            self._step(inputs)
        taken = time.perf_counter() - began
        if isinstance(self.optimizer, RemoteOptimizer):
            self.optimizer.wait()
        return taken / steps

    def _step(self, inputs: Tensor) -> None:
        self.network.zero_grad()
        self.network(inputs).square().mean().backward()
        if self.optimizer is not None:
            self.optimizer.step()


def main() -> None:
    """Measure, print one table, and write benchmarks/out/overlap.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, help="by default found out")
    parser.add_argument("--steps", type=int, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transport", choices=TRANSPORTS, default="tcp")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with optimd_server(asked.transport) as server, ExitStack() as running:
        trainings = {ALONE: Training(network(asked), None), LOCAL: local(asked)}
        for row, overlap in {WITHOUT: False, **OVERLAPS}.items():
            model = network(asked)
            optimizer = RemoteOptimizer(
                model.named_parameters(), "adamw", url=server.url, overlap=overlap, durability="memory"
            )
            running.callback(optimizer.close)
            trainings[row] = Training(model, optimizer)
        inputs = torch.randn(asked.batch or enough(trainings, asked), asked.width)
        taken: dict[str, list[float]] = {row: [] for row in trainings}
        for training in trainings.values():
            training.turn(inputs, asked.steps)
        for _ in progress(range(asked.rounds), "rounds"):
            for row, training in trainings.items():
                taken[row].append(training.turn(inputs, asked.steps))
        backward = backward_s(trainings[ALONE].network, inputs)
    report(asked, len(inputs), backward, taken)


def network(asked: argparse.Namespace) -> nn.Module:
    """A stack of linear layers."""
    layers = [nn.Sequential(nn.Linear(asked.width, asked.width), nn.ReLU()) for _ in range(asked.layers)]
    return nn.Sequential(*layers)


def local(asked: argparse.Namespace) -> Training:
    """What a step takes with torch's fused AdamW in the same process, by the same one thread."""
    model = network(asked)
    return Training(model, torch.optim.AdamW(model.parameters(), fused=True))


def enough(trainings: dict[str, Training], asked: argparse.Namespace) -> int:
    """The smallest batch whose backward pass takes `MARGIN` times the transport."""
    for batch in BATCHES:
        inputs = torch.randn(batch, asked.width)
        turns = {row: [trainings[row].turn(inputs, TRIAL_STEPS) for _ in range(4)][1:] for row in (ALONE, WITHOUT)}
        alone, without = median(turns[ALONE]), median(turns[WITHOUT])
        if backward_s(trainings[ALONE].network, inputs) > MARGIN * (without - alone):
            return batch
    return BATCHES[-1]


def backward_s(model: nn.Module, inputs: Tensor) -> float:
    """Median seconds of a backward pass."""
    taken = []
    for _ in range(5):
        model.zero_grad()
        loss = model(inputs).square().mean()
        began = time.perf_counter()
        loss.backward()
        taken.append(time.perf_counter() - began)
    return median(taken)


def report(asked: argparse.Namespace, batch: int, backward: float, taken: dict[str, list[float]]) -> None:
    """Print and write the figures."""
    told = {row: summary(seconds) for row, seconds in taken.items()}
    transport = told[WITHOUT]["median_s"] - told[ALONE]["median_s"]
    hidden = {row: (told[WITHOUT]["median_s"] - told[row]["median_s"]) / transport for row in OVERLAPS}
    rows = [
        [
            row,
            milliseconds(each["median_s"]),
            f"{milliseconds(each['q1_s'])} – {milliseconds(each['q3_s'])}",
            f"{hidden[row]:.0%}" if row in hidden else "",
        ]
        for row, each in told.items()
    ]
    parameters = sum(param.numel() for param in network(asked).parameters())
    passes = f"backward pass {milliseconds(backward)} ms, transport {milliseconds(transport)} ms"
    if backward < transport:
        passes += " (longer than the backward pass: no fair trial)"
    show(f"{parameters:,} parameters, {asked.transport}, batches of {batch} on one thread: {passes}", COLUMNS, rows)
    settings = vars(asked) | {"batch": batch, "parameters": parameters}
    spans = {"backward_s": backward, "transport_s": transport}
    write("overlap", {"settings": settings, **spans, "rows": told, "hidden": hidden})


if __name__ == "__main__":
    main()
