"""Gradients that are judged while they arrive."""

from __future__ import annotations

import math

import torch

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.norm import block_norm
from optimd_service.types import Span


class Judged:
    """Takes the norm of a push block by block, each as soon as it has come and while it is still in the cache.

    It costs no time then: the thread that receives would wait for the next bytes. The bits are those of ``judge``.

    Args:
      grads: shape [n]; where the gradients arrive.
    """

    def __init__(self, grads: torch.Tensor) -> None:
        self._grads = grads
        self._norms: list[float] = []
        self._came = 0

    def watch(self, span: Span) -> None:
        """Elements ``span`` have come; only what comes in order is judged here."""
        if span.start != self._came:
            return
        self._came = span.stop
        length = len(self._grads)
        while (at := len(self._norms) * BLOCK) < length and min(at + BLOCK, length) <= span.stop:
            self._norms.append(block_norm(self._grads[at : at + BLOCK]))

    @property
    def norm(self) -> float | None:
        """The 2-norm of all gradients, finite exactly if each of them is; None if some have not come in order."""
        return math.hypot(*self._norms) if len(self._norms) * BLOCK >= len(self._grads) else None
