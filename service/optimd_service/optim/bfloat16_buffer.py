"""State in bfloat16: two bytes an element, rounded so that small steps are not lost but taken now and then."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optimd_service.optim.counter_random import KEYED, Purpose, key_of, random16, stream_of
from optimd_service.optim.kernel import element, loop
from optimd_service.optim.state_buffer import require_range

BYTES = 2.0
_16 = np.uint32(16)
_EXPONENT = np.uint32(0x7F800000)


class BFloat16Buffer(NamedTuple):
    """One group's buffer in bfloat16, with stochastic rounding.

    A number x between two neighbours a < b in bfloat16 becomes b with probability (x − a)/(b − a), in steps of 2⁻¹⁶,
    and a otherwise: its expectation is x. Rounded to nearest, a mean that moves by less than (b − a)/2 in a step would
    stand still. What is exact in bfloat16 stays as it is.

    Infinity stays infinity, a finite number stays finite, and NaN stays NaN.

    Attributes:
      values: shape [n], bfloat16.

    Source: Gupta et al. 2015, arXiv:1502.02551; for bfloat16 weights and state, Zamirai et al. 2020, arXiv:2010.06192.
    """

    values: Tensor

    def widen_(self, out: Tensor, start: int) -> None:
        """As ``CompressedBuffer`` has it."""
        require_range(self.values, out, start)
        out.copy_(self.values[start : start + out.numel()])

    def narrow_(self, values: Tensor, start: int, purpose: Purpose) -> None:
        """As ``CompressedBuffer`` has it."""
        require_range(self.values, values, start)
        kept = self.values[start : start + values.numel()].view(torch.uint16).numpy()
        _narrow(values.view(torch.uint32).numpy(), kept, *purpose.words(), np.uint64(start // KEYED))


@loop
def _narrow(bits: Any, kept: Any, seed: Any, step: Any, buffer: Any, first: Any) -> None:
    stream = stream_of(seed, step, buffer)
    for block in range((bits.size + KEYED - 1) // KEYED):
        low, high = key_of(stream, first + np.uint64(block))
        here = slice(block * KEYED, min(block * KEYED + KEYED, bits.size))
        wide, narrow = bits[here], kept[here]
        for i in range(wide.size):
            narrow[i] = np.uint16(_rounded(wide[i], random16(low, high, np.uint32(i))) >> _16)


@element
def _rounded(bits: Any, noise: Any) -> Any:
    # A carry out of the lower half is the step up, into the exponent if need be. The largest numbers are cut instead of
    # becoming infinity; so are infinity and NaN, which arithmetic marks in the upper half.
    up = np.uint32(bits + noise)
    special = (bits & _EXPONENT) == _EXPONENT or (up & _EXPONENT) == _EXPONENT
    return bits if special else up
