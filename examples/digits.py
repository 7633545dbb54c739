"""Train a network on handwritten digits with its optimizer on a server, then compare five optimizers there.

    python examples/digits.py

starts a server of its own and leaves nothing running. docs/demo.md shows what it prints and draws.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from curves import draw
from local_server import local_server
from optimd import RemoteOptimizer
from runs import TITLES, recorded, table
from training import Digits, accuracy, network, train

ADAM_RATE = 0.003
RATES = (0.1, 0.01, 0.001, 0.0001)
REQUIRED_ACCURACY = 0.973

console = Console()


def main() -> None:
    options = arguments()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # end as on Ctrl-C, and the server with it
    torch.set_num_threads(1)  # the server computes too
    digits = Digits.load()
    with local_server() as url:
        console.print(f"A server of its own runs at {url}")
        reached = train_with_adam(url, digits, options.epochs, options.seed)
        compare(url, digits, options)
    console.print("The server has ended.")
    if reached < options.require:
        sys.exit(f"The test accuracy should be {options.require:.1%} or better, and is {reached:.1%}.")


def train_with_adam(url: str, digits: Digits, epochs: int, seed: int) -> float:
    """Train with Adam on the server, and again with Adam in this process. Returns the first one's test accuracy."""
    console.rule("Adam on the server, and the same training without one", align="left")
    model, local_model = network(seed), network(seed)
    # fused=True: the server's kernel. torch's default one rounds otherwise, and training multiplies what is rounded.
    local = torch.optim.Adam(local_model.parameters(), ADAM_RATE, fused=True)
    remote = RemoteOptimizer(model.named_parameters(), "adam", lr=ADAM_RATE, url=url, name="digits")
    with remote, bars() as progress:
        ours = fit(model, remote, digits, epochs, seed, progress, "on the server")
        theirs = fit(local_model, local, digits, epochs, seed, progress, "in this process")
    reached = accuracy(model, digits)
    first, last = apart(ours, theirs), apart(weights(model), weights(local_model))
    console.print(f"Test accuracy: [bold]{reached:.1%}[/]")
    console.print("Largest difference of any weight from torch.optim.Adam(fused=True):")
    console.print(f"[bold]{first:.1g}[/] after 1 epoch, [bold]{last:.1g}[/] after {epochs}\n")
    return reached


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of any two weights."""
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def compare(url: str, digits: Digits, options: argparse.Namespace) -> None:
    """Train with every optimizer at every learning rate, then look at what the server has recorded."""
    console.rule(f"{len(options.optimizers)} optimizers at {len(options.rates)} learning rates", align="left")
    accuracies: dict[str, float] = {}
    with bars() as progress:
        for optimizer in options.optimizers:
            for lr in options.rates:
                model = network(options.seed)
                remote = RemoteOptimizer(model.named_parameters(), optimizer, lr=lr, url=url, nonfinite="skip")
                with remote:
                    fit(model, remote, digits, options.epochs, options.seed, progress, f"{TITLES[optimizer]} {lr:g}")
                accuracies[remote.session.id] = accuracy(model, digits)
    runs = recorded(url, accuracies)
    console.print(table(runs, accuracies))
    console.print(f"Loss curves: {draw(runs, options.out)}", soft_wrap=True)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    epochs: int,
    seed: int,
    progress: Progress,
    title: str,
) -> list[Tensor]:
    """Train beside a progress bar, until done or until the loss is no number any more.

    Returns: the weights after the first epoch.
    """
    bar = progress.add_task(title, total=epochs, note="")
    first: list[Tensor] = []
    for loss in train(model, optimizer, digits, epochs, seed):
        first = first or weights(model)
        note = f"loss {loss:<9.3g} test accuracy {accuracy(model, digits):6.1%}"
        progress.update(bar, advance=1, note=note)
        if not math.isfinite(loss):
            break
    return first


def bars() -> Progress:
    columns = (TextColumn("{task.description:<15}"), BarColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, TimeElapsedColumn(), console=console)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizers", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--require", type=float, default=REQUIRED_ACCURACY, help="test accuracy that must be reached")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("out") / "digits.png")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted; the server has ended.")
