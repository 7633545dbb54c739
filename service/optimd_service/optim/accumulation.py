"""Gradient accumulation: several pushes make one step."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from optimd_service.optim.blocks import Each, array, constant, each_block
from optimd_service.optim.flat_group import require_alike
from optimd_service.optim.kernel import loop, widen


class Accumulate(BaseModel):
    """How many pushes make one step, and what of their gradients is stepped with."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    steps: Annotated[int, Field(ge=1, le=2**53, description="Pushes to a step.")]
    mean: bool = Field(default=True, description="Step with the mean of the gradients; false: with their sum.")

    def divisor(self, push: int) -> int:
        """What push number ``push`` (from 1) of a step has the sum divided by, once it is added."""
        return self.steps if self.mean and push == self.steps else 1


def accumulate_(total: Tensor, grads: Tensor, first: bool, divisor: int = 1, each: Each = map) -> None:
    """Add one push's gradients to those before it, in place.

    With g the gradients and d the divisor:
        s ← g  if first;  s ← (s + g)/d  otherwise
    A first push that is the last too would be divided by 1.

    Args:
      total: s, shape [n], float32 or float64; written. What it holds before the first push does not matter.
      grads: shape [n], dtype of total or bfloat16; read only.
      first: nothing has been added yet.
      divisor: ``Accumulate.divisor`` of this push.
      each: as ``map``, perhaps side by side.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 4 bytes a float32 parameter, the mean's division included.
    """
    require_alike(total, grads=grads)
    if first:
        each_block(lambda s, g: s.copy_(g), each, total, grads)
        return
    if not total.is_cpu:
        total.add_(grads).div_(divisor)
        return
    d = constant(divisor, total)
    each_block(lambda s, g: _add(array(s), array(g), d), each, total, grads)


@loop
def _add(total: Any, grads: Any, divisor: Any) -> None:
    for i in range(total.size):
        total[i] = (total[i] + widen(grads[i])) / divisor
