"""What every peer's server does between receiving and sending: torch's fused AdamW."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from cases import Case


class ParameterServer:
    """Float32 weights and their AdamW; one step at a time, whoever asks."""

    def __init__(self, case: Case) -> None:
        self._weights = [torch.nn.Parameter(torch.randn(length)) for length in case.lengths]
        self._outgoing = [weight.data.to(case.wire_dtype) for weight in self._weights]  # the same memory when float32
        self._optimizer = torch.optim.AdamW(self._weights, fused=True)
        self._lock = threading.Lock()

    def step(self, grads: list[Tensor]) -> list[Tensor]:
        """Update by these gradients.

        Args:
          grads: a tensor for each weight, in the wire's dtype; kept as they are when that is float32.

        Returns: the weights in the wire's dtype. With several clients the next step may write them while they are
          being sent: a peer need not be better than its users write it.
        """
        with self._lock:
            for weight, grad in zip(self._weights, grads, strict=True):
                weight.grad = grad.to(weight.dtype).view(weight.shape)
            self._optimizer.step()
            for weight, outgoing in zip(self._weights, self._outgoing, strict=True):
                if outgoing.dtype != weight.dtype:
                    outgoing.copy_(weight.data)
            return self._outgoing
