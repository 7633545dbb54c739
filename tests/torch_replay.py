"""What a training must come to: the gradients that were sent, stepped with by torch itself and nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]

SMALL = {"w": (30, 40), "b": (40,)}
LARGE = {"w": (1050, 1000), "b": (40,)}
"""Above 4 MiB: received, and written to the journal, piece by piece."""


@dataclass(frozen=True)
class Task:
    """A model, and how it is trained.

    Attributes:
      optimizer: as a session is described.   torchs: the same in torch.
      max_norm: of the gradients; None without clipping.
      description: further fields of it.
    """

    name: str
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "adamw", "lr": 0.01, "weight_decay": 0.1})
    torchs: Callable[..., torch.optim.Optimizer] = lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SMALL)
    max_norm: float | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def session(self) -> dict[str, Any]:
        """What creates it."""
        tensors = [{"name": name, "shape": list(shape)} for name, shape in self.shapes.items()]
        clip = {} if self.max_norm is None else {"clip": {"max_norm": self.max_norm}}
        return {"name": self.name, "optimizer": dict(self.optimizer), "tensors": tensors, **clip, **self.description}

    def grads(self, number: int) -> Tensors:
        """Those of the push of that number, the same whenever they are asked for."""
        dice = np.random.default_rng([crc32(self.name.encode()), number])
        return {name: torch.from_numpy(dice.standard_normal(s, np.float32)) for name, s in self.shapes.items()}


class Replay:
    """A training of a task by torch, from weights at zero."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._params = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in task.shapes.items()}
        self._optimizer = task.torchs(list(self._params.values()))

    def step(self, number: int) -> None:
        """With the gradients of one push."""
        for name, grad in self._task.grads(number).items():
            self._params[name].grad = grad
        if self._task.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._params.values(), self._task.max_norm)
        self._optimizer.step()

    @classmethod
    def of(cls, task: Task, numbers: Iterable[int]) -> Replay:
        replay = cls(task)
        for number in numbers:
            replay.step(number)
        return replay

    def assert_equal(self, weights: Tensors, state: Tensors) -> None:
        """The session's weights are these, and so is every moment that it gives."""
        for name, param in self._params.items():
            np.testing.assert_allclose(weights[name], param.detach(), rtol=1e-5, atol=1e-6, err_msg=name)
            for buffer, expected in self._optimizer.state[param].items():
                if torch.is_tensor(expected) and expected.shape == param.shape:
                    given = state[f"{name}.{buffer}"]
                    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6, err_msg=f"{name}.{buffer}")
