"""The same training beside a session: torch, on this machine, on the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from api_subject import GRADS, WEIGHTS, Tensors

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

# In float64 a wrong formula cannot hide behind rounding.
PRECISE = {name: tensor.double() for name, tensor in WEIGHTS.items()}


class Local:
    """A torch optimizer over copies of a session's weights.

    Args:
      make: the optimizer, from parameter groups: one for each tensor, in the order of ``weights``.
      own: tensor name → what its group has of its own.
    """

    def __init__(
        self, make: Make, weights: Tensors = PRECISE, own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.params = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        self.optimizer = make([{"params": [p], **(own or {}).get(name, {})} for name, p in self.params.items()])

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: param.detach() for name, param in self.params.items()}

    def lr(self, name: str = "weight") -> float:
        """The learning rate that the next step would take for this tensor."""
        return float(self.optimizer.param_groups[list(self.params).index(name)]["lr"])

    def hand(self, grads: Tensors) -> None:
        """Give the parameters copies of their gradients."""
        for name, param in self.params.items():
            param.grad = grads[name].to(param.dtype, copy=True)

    def step(self, grads: Tensors) -> None:
        self.hand(grads)
        self.optimizer.step()


def gradients(steps: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Iterator[dict[str, torch.Tensor]]:
    """Random ones, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield {name: torch.randn(g.shape, generator=generator, dtype=dtype) for name, g in GRADS.items()}


def scaled(grads: Tensors, factor: float) -> dict[str, torch.Tensor]:
    """Every gradient times a number."""
    return {name: grad * factor for name, grad in grads.items()}


def assert_close(ours: Tensors, theirs: Tensors, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """The same names, and the same numbers up to rounding."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
