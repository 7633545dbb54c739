"""A hyperparameter group as the kernels see it: a few flat tensors of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from optimd_service.errors import ShapeMismatch


class FlatGroup(NamedTuple):
    """One group's weights, gradients and state at one step.

    Attributes:
      params: shape [n], contiguous, float32 or float64; written by a step.
      grads: shape [n], dtype of params; read only.
      state: buffer name, as in torch.optim → shape [n], dtype of params; written. Buffers begin at zero.
      step: number of this update, ≥ 1.
      fresh: no update has written SGD's momentum buffer yet.
    """

    params: Tensor
    grads: Tensor
    state: Mapping[str, Tensor]
    step: int
    fresh: bool = False

    def part(self, start: int, stop: int) -> FlatGroup:
        """Elements ``start`` to ``stop``, as views."""
        if (start, stop) == (0, self.params.numel()):
            return self
        state = {name: buffer[start:stop] for name, buffer in self.state.items()}
        return FlatGroup(self.params[start:stop], self.grads[start:stop], state, self.step, self.fresh)


def require_alike(params: Tensor, **others: Tensor | None) -> None:
    """Refuse tensors whose shape is not that of ``params``, [n], before a kernel writes to any.

    Dtypes are not looked at: all buffers of a session are made in the one dtype of its layout.

    Raises: ShapeMismatch, naming the first that differs.
    """
    shape = params.shape
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != shape:
            expected, got = list(shape), list(tensor.shape)
            raise ShapeMismatch(f"{name} has shape {got}, params {expected}.", tensor=name, expected=expected, got=got)
