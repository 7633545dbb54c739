"""Judging gradients before they touch a weight: are they finite, and how long are they?"""

from __future__ import annotations

import math
from itertools import islice

from torch import Tensor

from optimd_service.optim.blocks import Each
from optimd_service.optim.norm import norm
from optimd_service.types import Layout

MOST_NAMED = 10


def judge(grads: Tensor, each: Each = map) -> float:
    """The gradients' 2-norm; finite exactly if every element is, so one pass answers both questions.

    Args:
      grads: shape [n], float32, float64 or bfloat16; read only.
      each: as ``map``, perhaps side by side; the result does not depend on it.

    Cost: one pass over memory.
    """
    return norm(grads, each)


def nonfinite_tensors(grads: Tensor, layout: Layout) -> list[str]:
    """Names of the first tensors (at most 10, in layout order) that hold NaN or infinity.

    Args:
      grads: shape [layout.numel]; read only.
    """
    damaged = (name for name, (start, stop) in layout.spans.items() if not math.isfinite(norm(grads[start:stop])))
    return list(islice(damaged, MOST_NAMED))


def zero_nonfinite_(grads: Tensor) -> None:
    """Set every element that is NaN or infinite to 0, in place; float32, float64 or bfloat16."""
    grads.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
