"""A model's buffers, such as running statistics, between torch's memory and a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from optimd._safetensors import Array
from optimd._torch_weights import Wire, on_wire

Pairs: TypeAlias = Iterable[tuple[str, Tensor]]
Buffers: TypeAlias = Mapping[str, Tensor] | Pairs | Callable[[], Pairs]


class LocalBuffers:
    """Buffers that are pushed with each step; whatever their dtype, they travel as floating-point numbers.

    Args:
      buffers: name → tensor, pairs of them such as `model.named_buffers()`, or what gives the pairs when it is called:
        a model that is moved to another device has new tensors.

    Raises: TypeError for a complex one.
    """

    def __init__(self, buffers: Buffers | None) -> None:
        if callable(buffers):
            self._pairs = buffers
        else:
            held = dict(buffers or ())
            self._pairs = held.items
        for name, tensor in self.tensors.items():
            if tensor.is_complex():
                raise TypeError(f"the buffer {name!r} is of {tensor.dtype}, and a session holds real numbers")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name → buffer, as they now are."""
        return dict(self._pairs())

    def on_wire(self) -> dict[str, Wire]:
        """Every buffer, to be sent."""
        return {name: on_wire(tensor) for name, tensor in self.tensors.items()}

    def take(self, received: Mapping[str, Array]) -> None:
        """Write what was received into the buffers; whole numbers are rounded to."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                value = torch.from_numpy(received[name])
                tensor.copy_(value if tensor.is_floating_point() else value.round())
