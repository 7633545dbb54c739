"""Every optimizer brings a parabola and Rosenbrock's valley to a thousandth, with the settings of the table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optim_references import ROWS, FlatRun, Row, Settings, layout_of
from torch import Tensor

Slope = Callable[[Tensor], tuple[float, Tensor]]
every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
STEEPNESS = torch.linspace(0.5, 2, 12).view(4, 3)


def parabola(p: Tensor) -> tuple[float, Tensor]:
    """½ Σ a(p − 1)² and its gradient, for p of shape [4, 3]."""
    away = p - 1
    return 0.5 * float((STEEPNESS * away * away).sum()), STEEPNESS * away


def rosenbrock(p: Tensor) -> tuple[float, Tensor]:
    """Σ (1 − x)² + 100(y − x²)² and its gradient, for rows (x, y) of p, shape [2, 2]."""
    x, y = p[:, 0], p[:, 1]
    off, left = y - x * x, 1 - x
    return float((left * left + 100 * off * off).sum()), torch.stack([-2 * left - 400 * x * off, 200 * off], dim=1)


def descend(row: Row, slope: Slope, start: Tensor, settings: Settings, steps: int) -> float:
    """The function's value after so many steps, as a share of its value at the start."""
    run = FlatRun(row.name, settings, layout_of([tuple(start.shape)]))
    view = run.layout.views(run.params)["t0"]
    view.copy_(start)
    for _ in range(steps):
        run.step(slope(view)[1].reshape(-1))
    return slope(view)[0] / slope(start)[0]


@every_row
def test_a_parabola_is_brought_to_a_thousandth(row: Row) -> None:
    assert descend(row, parabola, torch.zeros(4, 3), *row.parabola) < 1e-3


@every_row
def test_rosenbrocks_valley_is_followed_to_a_thousandth(row: Row) -> None:
    assert descend(row, rosenbrock, torch.tensor([[-1.2, 1.0], [-1.0, 1.2]]), *row.rosenbrock) < 1e-3
