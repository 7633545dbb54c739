"""Gradients that are judged while they arrive."""

from __future__ import annotations

import math
import threading

import torch

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.norm import block_norm
from optimd_service.session.covered import Covered
from optimd_service.types import Span


class Judged:
    """Takes the norm of a push block by block, each as soon as it has come and while it is still in the cache.

    It costs no time then: the thread that receives would wait for the next bytes. The bits are those of ``judge``, in
    whatever order and in how many parts the push comes.

    Args:
      grads: shape [n]; where the gradients arrive.
    """

    def __init__(self, grads: torch.Tensor) -> None:
        self._grads = grads
        self._lock = threading.Lock()
        self._there = Covered()
        self._norms: list[float | None] = [None] * math.ceil(len(grads) / BLOCK)

    def expect(self, span: Span) -> None:
        """Elements ``span`` are about to be written: what was seen there counts no more."""
        self._there.remove(span)
        for block in self._blocks(span):
            self._norms[block] = None

    def watch(self, span: Span) -> None:
        """Elements ``span`` have come; may be called by several threads."""
        with self._lock:
            self._there.add(span)
            whole = [block for block in self._blocks(span) if self._there.holds(self._span(block))]
        for block in whole:
            if self._norms[block] is None:
                self._norms[block] = block_norm(self._grads[slice(*self._span(block))])

    def _span(self, block: int) -> Span:
        return Span(block * BLOCK, min(block * BLOCK + BLOCK, len(self._grads)))

    def _blocks(self, span: Span) -> range:
        """Numbers of those that ``span`` is in; what lies behind the gradients is in none."""
        return range(span.start // BLOCK, min(math.ceil(span.stop / BLOCK), len(self._norms)))

    @property
    def norm(self) -> float | None:
        """The 2-norm of all gradients, finite exactly if each of them is; None if some have not come."""
        norms = [norm for norm in self._norms if norm is not None]
        return math.hypot(*norms) if len(norms) == len(self._norms) else None
