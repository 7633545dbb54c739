"""The way from numbers that somebody has to those that are meant, in bfloat16, without errors that add up."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.blocks import array
from optimd_service.optim.kernel import element, loop, narrow, widen

_LARGEST = np.float32(np.finfo(np.float32).max)
_LARGEST_BF16 = np.array(0x7F7F0000, np.uint32).view(np.float32)[()]


def difference_(sent: Tensor, held: Tensor, params: Tensor) -> bool:
    """Write what is to be added to ``held`` into ``sent``, and add it, as whoever receives it does.

        d ← bf16(p − h);  h ← h + d

    What remains between h and p is the rounding of this d: at most 2⁻⁸ of the way that was between them. It is part of
    the next d, so it does not stay.

    Args:
      sent: d, shape [n], bfloat16; written.
      held: h, shape [n], float32; written.
      params: p, shape [n], float32; read only.

    Returns: whether all of ``held`` is finite; where it is not, no difference leads on from it.

    Raises: ShapeMismatch, before anything is written.
    Cost: reads 8 and writes 6 bytes a parameter.
    Source: Gruntkowska, Tyurin & Richtárik 2022, arXiv:2209.15218 (EF21-P), with rounding as the compressor.
    """
    if not sent.shape == held.shape == params.shape:
        detail = f"Differences of {list(params.shape)} parameters to {list(held.shape)} are no {list(sent.shape)}."
        raise ShapeMismatch(detail, expected=list(params.shape), got=list(held.shape))
    return bool(_walk(array(sent), array(held), array(params)))


@loop
def _walk(sent: Any, held: Any, params: Any) -> Any:
    finite = 1
    for i in range(params.size):
        sent[i] = narrow(_way(held[i], params[i]), sent[i])
        held[i] = held[i] + widen(sent[i])
        finite &= abs(held[i]) <= _LARGEST
    return finite


@element
def _way(held: Any, param: Any) -> Any:
    # Between two finite numbers it is finite, although it may be longer than any number of the dtype.
    way = param - held
    return min(max(way, -_LARGEST_BF16), _LARGEST_BF16) if abs(param) <= _LARGEST else way
