"""The table of conformance: every optimizer, its settings, and the reference that it is held against.

An optimizer is one ``Row`` of ``ROWS``; every test of this folder that goes over optimizers goes over this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_optimizer
import torch
from optim_flat_run import SHAPES, FlatRun, Settings, deviation, gradients, layout_of
from optim_paper_references import ASGD, AdEMAMix, NAdam, Prodigy, ScheduleFreeAdamW
from torch import Tensor

from optimd_service.types import Layout

# Tests take the table and what runs it from this one place.
__all__ = [
    "ROW",
    "ROWS",
    "SETTINGS",
    "SHAPES",
    "STEPS",
    "FlatRun",
    "Row",
    "Settings",
    "deviation",
    "gradients",
    "layout_of",
    "reference_run",
]
STEPS = 100


class Lion(torch.optim.Optimizer):
    """Lion by the paper's Algorithm 2, tensor by tensor; torch has none."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: Sequence[float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * p.grad)
                p.copy_(p - lr * (update + group["weight_decay"] * p))
                m += (1 - beta2) * (p.grad - m)  # loses fewer digits than β₂m + (1−β₂)g, which is the same


@dataclass(frozen=True)
class Row:
    """One optimizer under test.

    Attributes:
      name: in the catalogue.
      reference: a torch.optim class, or a small one of the same kind, with the same names and defaults of arguments;
        it is called as ``reference([tensor, …], **hyperparameters)``, once a group.
      settings: sets of hyperparameters, at least the defaults and one with weight decay where there is any.
      parabola, rosenbrock: hyperparameters and a number of steps that bring the function to a thousandth.
      renamed: our hyperparameter → the reference's argument, where they differ.
      state_names: our buffer (or number) → the reference's state, where they differ.
      unkept: state of the reference that we have no need to keep.
      variants: further arguments of the reference; every setting is held against each of them.
      shapes: the tensors, alternately in groups ``default`` and ``slow``.
    """

    name: str
    reference: Callable[..., torch.optim.Optimizer]
    settings: Sequence[Settings]
    parabola: tuple[Settings, int]
    rosenbrock: tuple[Settings, int]
    renamed: Mapping[str, str] = field(default_factory=dict)
    state_names: Mapping[str, str] = field(default_factory=dict)
    unkept: frozenset[str] = frozenset({"step"})
    variants: Sequence[Settings] = ({},)
    shapes: Sequence[tuple[int, ...]] = SHAPES


FUSED_TOO = ({"fused": False}, {"fused": True})
SLOW_ADAM = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}

ROWS = (
    Row(
        "sgd",
        torch.optim.SGD,
        [
            {},
            {"lr": 0.1, "weight_decay": 0.1},
            {"lr": 0.1, "momentum": 0.9},
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        ],
        parabola=({"lr": 0.1, "momentum": 0.5}, 100),
        rosenbrock=({"lr": 1e-3, "momentum": 0.9}, 1000),
        variants=FUSED_TOO,
    ),
    Row(
        "rmsprop",
        torch.optim.RMSprop,
        [
            {},
            {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1},
            {"momentum": 0.9},
            {"centered": True},
            {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
        ],
        parabola=({"lr": 0.01}, 500),
        rosenbrock=({"lr": 1e-3}, 4000),
    ),
    Row(
        "adam",
        torch.optim.Adam,
        [{}, SLOW_ADAM, {"amsgrad": True}, {"amsgrad": True, "weight_decay": 0.1}],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.02}, 2000),
        variants=FUSED_TOO,
    ),
    Row(
        "adamw",
        torch.optim.AdamW,
        [{}, SLOW_ADAM, {"amsgrad": True, "weight_decay": 0.0}],
        parabola=({"lr": 0.05, "weight_decay": 0.0}, 300),
        rosenbrock=({"lr": 0.02, "weight_decay": 0.0}, 2000),
        variants=FUSED_TOO,
    ),
    Row(
        "lion",
        Lion,
        [{}, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}],
        parabola=({"lr": 0.01}, 500),
        rosenbrock=({"lr": 1e-3}, 4000),
    ),
    Row(
        "adagrad",
        torch.optim.Adagrad,
        [
            {},
            {"weight_decay": 0.1, "lr_decay": 0.01},
            {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-6, "weight_decay": 0.1},
        ],
        parabola=({"lr": 0.5}, 200),
        rosenbrock=({"lr": 0.5}, 4000),
        variants=FUSED_TOO,
    ),
    Row(
        "adadelta",
        torch.optim.Adadelta,
        [{}, {"lr": 0.5, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.01}],
        parabola=({}, 1500),
        rosenbrock=({"lr": 0.03}, 8000),
    ),
    Row(
        "rprop",
        torch.optim.Rprop,
        [{}, {"lr": 0.1, "etas": (0.6, 1.5), "step_sizes": (1e-4, 0.5)}],
        parabola=({}, 100),
        rosenbrock=({}, 1000),
    ),
    Row(
        "adamax",
        torch.optim.Adamax,
        [{}, SLOW_ADAM],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.05}, 3000),
    ),
    Row(
        "nadam",
        NAdam,
        [{}, SLOW_ADAM, {"momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.02}, 2000),
    ),
    Row(
        "radam",
        torch.optim.RAdam,
        [{}, SLOW_ADAM, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"betas": (0.9, 0.6)}],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.005}, 7000),
    ),
    Row(
        "asgd",
        ASGD,
        [{}, {"lr": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 20, "weight_decay": 0.1}],
        parabola=({"lr": 0.5}, 100),
        rosenbrock=({"lr": 1e-3}, 7000),
    ),
    Row(
        "ademamix",
        AdEMAMix,
        [
            {},
            {"lr": 0.01, "betas": (0.8, 0.99, 0.999), "eps": 1e-6, "weight_decay": 0.1, "alpha": 2.0},
            {"alpha_warmup": 40, "beta3_warmup": 30},
        ],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.01, "alpha": 1.0}, 3000),
    ),
    Row(
        "adan",
        pytorch_optimizer.Adan,
        [
            {},
            {"lr": 0.01, "betas": (0.9, 0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
            {"weight_decay": 0.1, "no_prox": True},
        ],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.01}, 2000),
        renamed={"no_prox": "weight_decouple"},
        state_names={"neg_pre_grad": "previous_grad"},
    ),
    Row(
        "schedule_free_sgd",
        pytorch_optimizer.ScheduleFreeSGD,
        [{}, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "warmup_steps": 20, "r": 1.0, "weight_lr_power": 1.0}],
        parabola=({"lr": 0.5}, 100),
        rosenbrock=({"lr": 3e-3}, 6000),
    ),
    Row(
        "schedule_free_adamw",
        ScheduleFreeAdamW,
        [{}, {**SLOW_ADAM, "warmup_steps": 20, "r": 1.0, "weight_lr_power": 1.0}],
        parabola=({"lr": 0.05}, 300),
        rosenbrock=({"lr": 0.05}, 4000),
    ),
    Row(
        "prodigy",
        Prodigy,
        [
            {},
            {"lr": 0.5, "betas": (0.8, 0.99), "weight_decay": 0.1, "d0": 1e-3, "d_coef": 2.0, "growth_rate": 1.1},
            {"d0": 1e-3, "use_bias_correction": True, "safeguard_warmup": True, "beta3": 0.9},
        ],
        parabola=({}, 300),
        rosenbrock=({}, 1000),
    ),
)
ROW: Mapping[str, Row] = {row.name: row for row in ROWS}
SETTINGS = [(row.name, settings) for row in ROWS for settings in row.settings]


def reference_run(
    row: Row, settings: Settings, layout: Layout, grads: Sequence[Tensor], variant: Settings
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The same run by the row's reference, one for each group; returns weights and the reference's state by tensor."""
    run = FlatRun(row.name, settings, layout)
    params = {name: view.clone() for name, view in layout.views(run.params).items()}
    references = [
        row.reference(
            [params[t.name] for t in layout.tensors if t.group == name],
            **{row.renamed.get(key, key): value for key, value in run.hyper[name].model_dump().items()},
            **variant,
        )
        for name in layout.groups
    ]
    for flat in grads:
        for name, view in layout.views(flat).items():
            params[name].grad = view.to(layout.dtype, copy=True)
        for reference in references:
            reference.step()
    held = {id(p): state for reference in references for p, state in reference.state.items()}
    return params, {name: held.get(id(p), {}) for name, p in params.items()}
