"""What is measured: so many parameters, in so many tensors, as what on the wire, over which transport."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Dtype: TypeAlias = Literal["f32", "bf16"]
Transport: TypeAlias = Literal["tcp", "uds"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
SMALL = 200_000
"""Parameters below which torch's fused AdamW is faster on one thread."""
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)


@dataclass(frozen=True, slots=True)
class Case:
    """One step's size and way: gradients up, AdamW, weights down.

    Attributes:
      parameters: of the model, over all its tensors.
      dtype: of gradients and weights on the wire; the server's weights are float32.
      clients: steps that are under way at once, from as many threads of one client process; a step's time is then
        that of all of them together.
    """

    parameters: int
    tensors: int = 1
    dtype: Dtype = "f32"
    transport: Transport = "tcp"
    clients: int = 1

    @property
    def lengths(self) -> list[int]:
        """Elements of each tensor; the last one takes what does not divide."""
        each = self.parameters // self.tensors
        return [each] * (self.tensors - 1) + [self.parameters - each * (self.tensors - 1)]

    @property
    def wire_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "f32" else torch.bfloat16

    @property
    def wire_bytes(self) -> int:
        """Of the gradients, and again of the weights."""
        return self.parameters * self.wire_dtype.itemsize

    @property
    def server_threads(self) -> int:
        """For torch in a peer's server: every core, but one where waking a second takes longer than the update."""
        return 1 if self.parameters < SMALL else os.cpu_count() or 1

    @property
    def title(self) -> str:
        tensors = "1 tensor" if self.tensors == 1 else f"{self.tensors:,} tensors"
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{self.parameters:,} parameters in {tensors}, {self.dtype} both ways, {self.transport}, {clients}"

    def wire_tensors(self) -> list[Tensor]:
        """Random tensors as they go over the wire; every page of them has been touched."""
        return [torch.randn(length).to(self.wire_dtype) for length in self.lengths]

    def float32_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Random arrays by tensor name; every page of them has been touched."""
        return {f"t{i}": torch.randn(length).numpy() for i, length in enumerate(self.lengths)}
