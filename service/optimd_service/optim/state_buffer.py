"""What a buffer of an optimizer's state in fewer bytes can do, whatever its format."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.counter_random import Purpose

UNIT = 256
"""Elements that a format may treat together, counted from the start of the group."""


class CompressedBuffer(Protocol):
    """One buffer of one group; n elements, counted from the start of the group. Zeroed memory stands for zeros.

    Both directions work on any range that starts at a multiple of 256, and are the same for the same range whoever does
    it and however a group is cut into ranges; a range that ends inside a unit ends the group.
    """

    def widen_(self, out: Tensor, start: int) -> None:
        """Write elements from ``start`` on, as many as ``out`` holds, into ``out``; shape [k], float32.

        Raises: ShapeMismatch, before anything is written.
        """

    def narrow_(self, values: Tensor, start: int, purpose: Purpose) -> None:
        """Keep ``values``, shape [k], float32, as the elements from ``start`` on.

        Args:
          purpose: what the random bits are for, in formats that round with any.

        Raises: ShapeMismatch, before anything is written.
        """


def require_range(buffer: Tensor, wide: Tensor, start: int) -> None:
    """Refuse a range that does not begin with a unit, or lies outside the buffer: the loops check no bounds.

    Raises: ShapeMismatch; TypeError, if what is wide is not in float32.
    """
    if wide.dtype is not torch.float32:
        raise TypeError(f"State is widened into float32, not {wide.dtype}.")
    stop, length = start + wide.numel(), buffer.numel()
    if start % UNIT or start < 0 or stop > length or (stop % UNIT and stop != length):
        detail = f"Elements {start} to {stop} are no range of {UNIT}s of a buffer of {length}."
        raise ShapeMismatch(detail, expected=[length], got=[start, stop])
