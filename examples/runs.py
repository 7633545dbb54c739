"""What the server recorded of some training runs, and a table of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich.table import Table

from optimd import Client

TITLES = {"sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW", "lion": "Lion"}
GUESSING = math.log(10)
"""The loss of finding all ten digits equally likely; a run that ends above it has diverged."""
LAST_STEPS = 23
"""Over how many steps the final loss is averaged: one epoch."""


@dataclass(frozen=True)
class Run:
    """One session's history.

    Attributes:
      losses, grad_norms: one for each step taken; NaN where it was not a finite number.
      skipped: pushes that the server did not apply, because the gradient was not finite.
    """

    session: str
    optimizer: str
    lr: float
    losses: np.ndarray
    grad_norms: np.ndarray
    skipped: int

    @property
    def final_loss(self) -> float:
        """Mean of the last epoch; infinite for a run that ended in gradients that are not finite."""
        return math.inf if self.skipped else float(self.losses[-LAST_STEPS:].mean())


def recorded(url: str, session_ids: Iterable[str]) -> list[Run]:
    """Read runs back from the server."""
    with Client(url) as client:
        return [_run(client, session_id) for session_id in session_ids]


def _run(client: Client, session_id: str) -> Run:
    session = client.session(session_id)
    steps = list(session.history())
    optimizer = session.info["optimizer"]
    return Run(
        session=session_id,
        optimizer=optimizer["name"],
        lr=optimizer["lr"],
        losses=np.array([step.loss for step in steps], dtype=float),
        grad_norms=np.array([step.grad_norm for step in steps], dtype=float),
        skipped=session.info["skipped"],
    )


def by_optimizer(runs: Iterable[Run]) -> dict[str, list[Run]]:
    return {name: list(group) for name, group in groupby(runs, key=lambda run: run.optimizer)}


def best(runs: Iterable[Run]) -> Run:
    return min(runs, key=lambda run: run.final_loss)


def table(runs: Iterable[Run], accuracies: Mapping[str, float]) -> Table:
    """A row for each run, the best of each optimizer marked.

    Args:
      accuracies: session id → share of the test images.
    """
    shown = Table(caption="final: mean of the last epoch; ★ the lowest of its optimizer", caption_justify="left")
    shown.add_column("optimizer", no_wrap=True)
    for name in ("lr", "final loss", "lowest loss", "test accuracy", "largest grad norm"):
        shown.add_column(name, justify="right")
    for optimizer, group in by_optimizer(runs).items():
        for run in group:
            final, style = _verdict(run, best(group))
            lowest, norm = f"{np.nanmin(run.losses):.3g}", f"{np.nanmax(run.grad_norms):.3g}"
            shown.add_row(
                TITLES[optimizer], f"{run.lr:g}", final, lowest, f"{accuracies[run.session]:.1%}", norm, style=style
            )
        shown.add_section()
    return shown


def _verdict(run: Run, winner: Run) -> tuple[str, str]:
    """The final loss as the table shows it, and the row's style."""
    if run.skipped:
        return f"ended at step {len(run.losses)}", "red"
    final = f"{run.final_loss:.3g}"
    if run.final_loss > GUESSING:
        return final, "red"
    return (f"★ {final}", "bold green") if run is winner else (final, "")
