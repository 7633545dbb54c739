"""The settings under test, and the reference implementations that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optimd_service.optim.catalogue import find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.update import Here, Norms, new_scratch, update_
from optimd_service.types import Layout, TensorSpec

Settings = Mapping[str, Any]

SETTINGS: list[tuple[str, Settings]] = [
    ("sgd", {}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1}),
    ("rmsprop", {"momentum": 0.9}),
    ("rmsprop", {"centered": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("adam", {}),
    ("adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    ("adam", {"amsgrad": True}),
    ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("adamw", {}),
    ("adamw", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    ("adamw", {"amsgrad": True, "weight_decay": 0.0}),
    ("lion", {}),
    ("lion", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
SHAPES = [(), (0,), (3,), (17, 5), (2, 3, 4, 5), (3001,), (60, 50)]
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


REFERENCES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lion": Lion,
}


def layout_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Layout:
    """Tensors t0, t1, …, alternately in groups ``default`` and ``slow``."""
    specs = [TensorSpec(f"t{i}", shape, "slow" if i % 2 else "default") for i, shape in enumerate(shapes)]
    return Layout.arrange(specs, ["slow", "default"], dtype)


def gradients(layout: Layout, steps: int) -> list[Tensor]:
    """Seeded gradients of every size from 1e-4 to 1, one flat buffer a step."""
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-4, 0, layout.numel, dtype=layout.dtype)
    return [torch.randn(layout.numel, generator=generator, dtype=layout.dtype) * size for _ in range(steps)]


class FlatRun:
    """A session's arithmetic without the session: one flat buffer a kind, two groups, ``slow`` at half the rate."""

    def __init__(self, optimizer: str, settings: Settings, layout: Layout) -> None:
        self.layout = layout
        self.optimizer = find(optimizer)
        hyper = self.optimizer.parse(settings, where="optimizer")
        slower = self.optimizer.parse({**dict(hyper), "lr": hyper.lr / 2}, where="groups.slow")
        self.hyper = {"default": hyper, "slow": slower}
        self.params = torch.randn(layout.numel, generator=torch.Generator().manual_seed(0), dtype=layout.dtype)
        self.state = {name: torch.zeros_like(self.params) for name in self.optimizer.state(hyper)}
        self.scratch = new_scratch(layout.numel, layout.dtype)
        self.steps = 0

    def step(self, grads: Tensor) -> Norms:
        self.steps += 1
        whole = FlatGroup(self.params, grads, self.state, self.steps, fresh=self.steps == 1)
        return Norms.joined(
            update_(self.optimizer, whole.part(*span), self.hyper[name], Here(self.scratch))
            for name, span in self.layout.groups.items()
        )


def reference_run(
    optimizer: str, settings: Settings, layout: Layout, grads: Sequence[Tensor], **implementation: bool
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """The same run, tensor by tensor, by torch.optim; returns the weights in layout order, and the optimizer."""
    run = FlatRun(optimizer, settings, layout)
    params = {name: view.clone() for name, view in layout.views(run.params).items()}
    groups = [
        {"params": [params[t.name] for t in layout.tensors if t.group == name], **hyper.model_dump()}
        for name, hyper in run.hyper.items()
    ]
    reference = REFERENCES[optimizer](groups, **implementation)
    for flat in grads:
        for name, view in layout.views(flat).items():
            params[name].grad = view.clone()
        reference.step()
    return list(params.values()), reference


def deviation(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest magnitude wanted; 0 for empty tensors."""
    if wanted.numel() == 0:
        return 0.0
    largest = wanted.abs().max().item()
    difference = (got - wanted).abs().max().item()
    return difference / largest if largest else difference
