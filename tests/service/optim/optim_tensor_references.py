"""Optimizers that look at tensors one by one: settings under test, references, and a run of either.

LAMB and LARS are written from their papers; torch has neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor

from optimd_service.optim.catalogue import find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.update import Here, Norms, update_tensors_

Settings = Mapping[str, Any]
Shape = tuple[int, ...]

STEPS = 50
SHAPES: list[Shape] = [(), (0,), (7,), (17, 5), (5, 17), (2, 3, 4, 5), (60, 50)]
MATRICES: list[Shape] = [(17, 5), (5, 17), (0, 4), (60, 50), (32, 32)]
SETTINGS: list[tuple[str, Settings]] = [
    ("lamb", {}),
    ("lamb", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.1}),
    ("lars", {}),
    ("lars", {"momentum": 0.0, "weight_decay": 1e-3}),
    ("lars", {"lr": 5.0, "momentum": 0.8, "weight_decay": 0.01, "trust_coefficient": 0.01}),
    ("adafactor", {}),
    ("adafactor", {"eps": (1e-5, 1e-2), "d": 2.0, "beta2_decay": -0.5, "weight_decay": 0.1}),
    ("muon", {}),
    ("muon", {"nesterov": False, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}),
    ("muon", {"ns_coefficients": (2.0, -1.5, 0.5), "momentum": 0.8}),
    ("soap", {}),
    ("soap", {"precondition_1d": True, "max_precondition_dim": 20, "shampoo_beta": 0.8, "precondition_frequency": 3}),
    ("soap", {"correct_bias": False, "normalize_gradient": True, "weight_decay": 0.0}),
    ("shampoo", {}),
    ("shampoo", {"momentum": 0.9, "weight_decay": 0.1, "preconditioning_compute_steps": 3, "matrix_eps": 1e-3}),
    ("shampoo", {"weight_decay": 0.1, "weight_decouple": True}),
    ("sparse_adam", {}),
    ("sparse_adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
]


class LAMB(torch.optim.Optimizer):
    """Algorithm 2 of You et al. 2020, φ the identity."""

    def __init__(self, params: Any, lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.t += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                v = self.state[p].setdefault("exp_avg_sq", torch.zeros_like(p))
                m += (1 - beta1) * (p.grad - m)
                v.mul_(beta2).add_((1 - beta2) * p.grad**2)
                ratio = m / (1 - beta1**self.t) / ((v / (1 - beta2**self.t)).sqrt() + group["eps"])
                update = ratio + group["weight_decay"] * p
                longest, length = p.norm(), update.norm()
                trust = longest / length if longest > 0 and length > 0 else 1.0
                p.sub_(group["lr"] * trust * update)


class LARS(torch.optim.Optimizer):
    """Algorithm 1 of You, Gitman & Ginsburg 2017; a norm of 0 leaves the global rate alone."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, trust_coefficient: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            decay = group["weight_decay"]
            for p in group["params"]:
                b = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                weights, grads = p.norm(), p.grad.norm()
                local = group["trust"] * weights / (grads + decay * weights) if weights > 0 and grads > 0 else 1.0
                b.mul_(group["momentum"]).add_(group["lr"] * local * (p.grad + decay * p))
                p.sub_(b)


class SparseAdam(torch.optim.SparseAdam):
    """torch's own, given every row of gradients that came whole."""

    def step(self) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"]):
            p.grad = torch.sparse_coo_tensor(torch.arange(len(p))[None], p.grad, p.shape, check_invariants=True)
        super().step()


REFERENCES: Mapping[str, Any] = {
    "lamb": LAMB,
    "lars": LARS,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
    "soap": pytorch_optimizer.SOAP,
    "shampoo": pytorch_optimizer.Shampoo,
    "sparse_adam": SparseAdam,
}


class TensorRun:
    """A session's arithmetic without the session: each tensor with its own state, all begun at zero."""

    def __init__(self, optimizer: str, settings: Settings, dtype: torch.dtype = torch.float32) -> None:
        self.optimizer = find(optimizer)
        self.hyper = self.optimizer.parse(settings, where="optimizer")
        self.shapes = shapes_for(optimizer)
        self.params = begun(self.shapes, dtype)
        assert self.optimizer.shapes is not None
        self.state = [
            {name: torch.zeros(size, dtype=dtype) for name, size in self.optimizer.shapes(self.hyper, shape).items()}
            for shape in self.shapes
        ]
        self.steps = 0

    def step(self, grads: Sequence[Tensor]) -> Norms:
        self.steps += 1
        none = torch.zeros(0)
        whole = FlatGroup(none, none, {}, self.steps, fresh=self.steps == 1)
        tensors = [
            whole._replace(params=p.view(-1), grads=g.view(-1), state=state, shape=shape)
            for p, g, state, shape in zip(self.params, grads, self.state, self.shapes, strict=True)
        ]
        return update_tensors_(self.optimizer, whole, tensors, self.hyper, Here())


def shapes_for(optimizer: str) -> list[Shape]:
    return MATRICES if optimizer in {"muon", "sparse_adam"} else SHAPES


def begun(shapes: Sequence[Shape], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def gradients(shapes: Sequence[Shape], dtype: torch.dtype = torch.float32, steps: int = STEPS) -> list[list[Tensor]]:
    """Seeded gradients; each tensor's has a size of its own, from 1e-3 to 1."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-3, 0, len(shapes)).tolist()
    return [
        [torch.randn(shape, generator=generator, dtype=dtype) * size for shape, size in zip(shapes, sizes, strict=True)]
        for _ in range(steps)
    ]


def reference_run(optimizer: str, settings: Settings, steps: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> Any:
    """The same run by the reference, for the tensors that have elements; returns weights and optimizer."""
    hyper = find(optimizer).parse(settings, where="optimizer")
    params = [p for p in begun(shapes_for(optimizer), dtype) if p.numel()]
    reference = REFERENCES[optimizer](params, **dict(hyper))
    for grads in steps:
        for p, g in zip(params, [g for g in grads if g.numel()], strict=True):
            p.grad = g.to(dtype, copy=True)
        reference.step()
    return params, reference


def deviation(run: TensorRun, wanted: Sequence[Tensor]) -> float:
    """The largest difference of a tensor, in units of the largest magnitude wanted in it."""
    pairs = zip([p for p in run.params if p.numel()], wanted, strict=True)
    return max(((p - w).abs().max() / w.abs().max()).item() for p, w in pairs)
