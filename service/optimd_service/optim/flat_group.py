"""A hyperparameter group as the kernels see it: a few flat tensors of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optimd_service.errors import ShapeMismatch

Array = NDArray[Any]
Numbers = dict[str, float]
"""What an optimizer remembers of a whole group beside its buffers, such as Prodigy's estimate d."""


_LARGEST = {kind: float(np.finfo(kind).max) for kind in (np.float32, np.float64)}


class FlatGroup(NamedTuple):
    """One group's weights, gradients and state at one step, or a part of them.

    Attributes:
      params: shape [n], contiguous, float32 or float64; written by a step.
      grads: shape [n], dtype of params, or bfloat16 beside float32; read only.
      state: buffer name, as in torch.optim → shape [n], dtype of params; written. Buffers begin at zero.
      step: number of this update, ≥ 1.
      fresh: some buffer has not been written by an update yet.
      numbers: the group's own, advanced once before the first block of an update; blocks only read them.
      shape: of the tensor, where the optimizer looks at tensors one by one; its state then has shapes of its own.
      rows: of the tensor, [height, width], that ``grads`` are of, where they are of some rows alone: shape [k], int64,
        ascending, each once. ``grads`` are [k · width] then.
      scratch: dtype of params; what an update on a device works in, whatever it held. None on the host.
    """

    params: Tensor
    grads: Tensor
    state: Mapping[str, Tensor]
    step: int
    fresh: bool = False
    numbers: Numbers = {}  # noqa: RUF012  never written through the default: who has numbers brings them
    shape: tuple[int, ...] | None = None
    rows: Tensor | None = None
    scratch: Tensor | None = None

    def part(self, start: int, stop: int) -> FlatGroup:
        """Elements ``start`` to ``stop``, as views."""
        if (start, stop) == (0, self.params.numel()):
            return self
        state = {name: buffer[start:stop] for name, buffer in self.state.items()}
        return self._replace(params=self.params[start:stop], grads=self.grads[start:stop], state=state)

    def arrays(self, *buffers: str) -> tuple[Array, ...]:
        """Weights, gradients and these state buffers in place, as the compiled loops take them; bfloat16 as its bits.

        Raises: ShapeMismatch, naming the first that is not as long as the weights; loops check no bounds.
        """
        grads = self.grads.view(torch.uint16) if self.grads.dtype is torch.bfloat16 else self.grads
        arrays = tuple([tensor.numpy() for tensor in (self.params, grads, *[self.state[name] for name in buffers])])
        length = arrays[0].size
        if any(array.size != length for array in arrays):  # NumPy tells lengths faster than torch
            require_alike(self.params, grads=self.grads, **{name: self.state[name] for name in buffers})
        return arrays

    def constants(self, *values: float) -> tuple[np.floating[Any], ...]:
        """Numbers in the dtype of the arithmetic: one float64 among float32 would make a loop compute in float64.

        What is beyond the dtype becomes its largest number: infinity times a gradient of 0 would be NaN.
        """
        kind = np.float64 if self.params.dtype is torch.float64 else np.float32
        largest = _LARGEST[kind]
        return tuple([kind(max(-largest, min(value, largest))) for value in values])


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
