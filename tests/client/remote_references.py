"""Parameters of awkward shapes, gradients for them, and the local optimizers that a remote one is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]


class Lion(torch.optim.Optimizer):
    """Lion by the paper's Algorithm 2; torch has none."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: Sequence[float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * p.grad)
                p.copy_(p - lr * (update + group["weight_decay"] * p))
                m += (1 - beta2) * (p.grad - m)


LOCAL: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lion": Lion,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
}


def parameters() -> dict[str, nn.Parameter]:
    """0-dim, empty, 4-dim, and two that do not lie in memory as they are indexed."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "scale": randn().abs() + 1,
        "nothing": randn(0, 3),
        "conv": randn(2, 3, 4, 5),
        "transposed": randn(5, 7).t(),
        "strided": randn(6, 8)[:, ::2],
        "bias": randn(11),
    }
    return {name: nn.Parameter(tensor) for name, tensor in tensors.items()}


def two_groups(params: dict[str, nn.Parameter], **of_second: Any) -> Groups:
    """Named groups: every second parameter has hyperparameters of its own."""
    pairs = list(params.items())
    return [{"params": pairs[::2]}, {"params": pairs[1::2], **of_second}]


def gradients(params: dict[str, nn.Parameter], steps: int) -> Iterator[None]:
    """Give every parameter its seeded gradient of one step after the other."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator) * 0.5
        yield


def run(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter], steps: int) -> None:
    for _ in gradients(params, steps):
        optimizer.step()


def deviation(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest magnitude wanted; 0 for empty tensors."""
    if wanted.numel() == 0:
        return 0.0
    return ((got - wanted).abs().max() / wanted.abs().max()).item()
