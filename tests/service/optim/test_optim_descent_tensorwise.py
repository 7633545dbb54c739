"""The optimizers that look at tensors one by one bring the same two functions to a thousandth."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from optim_flat_run import FlatRun, Settings, layout_of
from optim_references import ROW
from test_optim_descent import Slope, parabola, rosenbrock
from torch import Tensor

from optimd_service.optim.catalogue import OPTIMIZERS

# Optimizer → hyperparameters and number of steps, for the parabola and for Rosenbrock's valley.
DESCENTS: Mapping[str, tuple[tuple[Settings, int], tuple[Settings, int]]] = {
    "lamb": (({"lr": 0.01, "weight_decay": 0.0}, 700), ({"lr": 0.003, "weight_decay": 0.0}, 2500)),
    "lars": (({"lr": 0.3, "trust_coefficient": 0.01}, 200), ({"lr": 0.3, "trust_coefficient": 0.01}, 1500)),
    "adafactor": (({"lr": 0.05}, 600), ({"lr": 0.005}, 6000)),
    "muon": (({"lr": 0.01, "weight_decay": 0.0}, 700), ({"lr": 0.003, "weight_decay": 0.0}, 3000)),
    "soap": (({"lr": 0.03, "weight_decay": 0.0}, 300), ({"lr": 0.01, "weight_decay": 0.0}, 1500)),
    "shampoo": (({"lr": 1.0}, 100), ({"lr": 1.0}, 2500)),
    "sparse_adam": (({"lr": 0.05}, 300), ({"lr": 0.02}, 2500)),
}
every_one = pytest.mark.parametrize("name", DESCENTS)


def descend(name: str, slope: Slope, start: Tensor, settings: Settings, steps: int) -> float:
    """The function's value after so many steps, as a share of its value at the start."""
    run = FlatRun(name, settings, layout_of([tuple(start.shape)]))
    view = run.layout.views(run.params)["t0"]
    view.copy_(start)
    for _ in range(steps):
        run.step(slope(view)[1].reshape(-1))
    return slope(view)[0] / slope(start)[0]


def test_every_optimizer_of_the_catalogue_has_a_descent() -> None:
    assert DESCENTS.keys() | ROW.keys() == OPTIMIZERS.keys()


@every_one
def test_a_parabola_is_brought_to_a_thousandth_tensor_by_tensor(name: str) -> None:
    assert descend(name, parabola, torch.zeros(4, 3), *DESCENTS[name][0]) < 1e-3


@every_one
def test_rosenbrocks_valley_is_followed_to_a_thousandth_tensor_by_tensor(name: str) -> None:
    start = torch.tensor([[-1.2, 1.0], [-1.0, 1.2]])
    assert descend(name, rosenbrock, start, *DESCENTS[name][1]) < 1e-3
