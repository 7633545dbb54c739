"""State in eight bits: one byte an element, and one float32 for every 256 of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim.counter_random import KEYED, Purpose, key_of, random16, stream_of
from optimd_service.optim.dynamic_code import SIGNED, UNSIGNED, DynamicCode
from optimd_service.optim.kernel import element, fma, loop
from optimd_service.optim.state_buffer import UNIT, require_range

BYTES = 1 + 4 / UNIT
_1, _31 = map(np.uint32, (1, 31))
_LARGEST, _INFINITY = map(np.uint32, (0x7F7FFFFF, 0x7F800000))
_HALF, _MIDDLE = map(np.float32, (0.5, 32767.5))
# Float32 arithmetic puts a level up to 2⁻¹⁵ beside its own number. Noise that stays this far below and above lets none
# become its neighbour.
_STILL = 2.0**-13
_SPREAD = np.float32((1 - 2 * _STILL) / 2**16)
# Below it, levels are numbers that float32 holds with fewer digits, and a level would not be told from its neighbours.
_SMALL = np.float32(2.0**-100)


class EightBitBuffer(NamedTuple):
    """One group's buffer in eight bits: every 256 elements x become a scale and the codes of their x/scale.

    The scale is the element of largest magnitude, with its sign: that one is kept exactly, whatever its sign. Where the
    paper keeps |scale|, a negative largest element loses 0.7 % of itself every step, its code having 1 and no −1. The
    others become levels of a ``DynamicCode``. Zeros stay zeros. What is kept and widened is kept the same again.

    First moments, which have signs, are rounded stochastically: x/scale between two levels a < b becomes b with
    probability (x/scale − a)/(b − a), in steps of 2⁻¹⁶ and to 2⁻¹³ exactly, and a otherwise. A mean that moves by far
    less than a level in a step, as Lion's does, moves as fast as it should on average; rounded to nearest it would
    stand still. Only what has the other sign than the scale and more than 99.3 % of its size becomes 99.3 %, and units
    whose scale is below 2⁻¹⁰⁰ are rounded to nearest. Second moments are rounded to nearest, for noise under a root
    that divides does not average out.

    Infinity becomes the largest finite number; NaN comes only of NaN, and spreads over its unit.

    Attributes:
      codes: shape [n], uint8.
      scales: shape [⌈n/256⌉], float32.
      signed: whether elements may be negative; if not, a positive element never becomes 0, which would divide a step.

    Source: Dettmers et al. 2022, arXiv:2110.02861; units of 256 where the paper has 2048, which rounds to nearest.
        Stochastic rounding: Gupta et al. 2015, arXiv:1502.02551.
    """

    codes: Tensor
    scales: Tensor
    signed: bool

    def widen_(self, out: Tensor, start: int) -> None:
        """As ``CompressedBuffer`` has it."""
        codes, scales = self._range(out, start)
        _WIDEN[self.signed](codes, scales, out.numpy())

    def narrow_(self, values: Tensor, start: int, purpose: Purpose) -> None:
        """As ``CompressedBuffer`` has it."""
        codes, scales = self._range(values, start)
        _NARROW[self.signed](values.numpy(), codes, scales, *purpose.words(), np.uint64(start // KEYED))

    def _range(self, wide: Tensor, start: int) -> tuple[Any, Any]:
        require_range(self.codes, wide, start)
        units, first, last = scales_of(self.codes.numel()), start // UNIT, scales_of(start + wide.numel())
        if self.scales.numel() != units:
            got = list(self.scales.shape)
            raise ShapeMismatch(f"scales has shape {got}, not [{units}].", tensor="scales", expected=[units], got=got)
        return self.codes[start : start + wide.numel()].numpy(), self.scales[first:last].numpy()


def scales_of(elements: int) -> int:
    """How many scales a buffer of so many elements has."""
    return -(-elements // UNIT)


# The lines are the loops' own constants: ones passed as arguments might be what the loop writes to, as far as the
# compiler can tell, and would be read element by element.
def _widening(code: DynamicCode) -> Callable[..., None]:
    slopes, offsets = code.values
    lines, signed = len(slopes), code.signed

    @loop
    def widen(codes: Any, scales: Any, out: Any) -> None:
        for unit in range(scales.size):
            here = slice(unit * UNIT, min(unit * UNIT + UNIT, out.size))
            wide, narrow, scale = out[here], codes[here], scales[unit]
            for i in range(wide.size):
                number = np.int32(np.int8(narrow[i])) if signed else np.int32(narrow[i])
                # −128 is the 128 that has no negative.
                negative = number < 0 and number != -128
                k, level = np.float32(abs(number)), np.float32(0)
                for line in range(lines):
                    level = max(level, fma(slopes[line], k, offsets[line]))
                level = min(level, np.float32(1))
                wide[i] = (-level if negative else level) * scale

    return widen


def _narrowing(code: DynamicCode) -> Callable[..., None]:
    (slopes, offsets), lines, signed = code.places, len(code.places.slopes), code.signed
    last_slope, last_offset = code.last.slopes[0], code.last.offsets[0]
    one, most_negative = np.float32(np.argmax(code.levels)), np.int32(code.most_negative)

    @loop
    def narrow(values: Any, codes: Any, scales: Any, seed: Any, step: Any, buffer: Any, first: Any) -> None:
        stream = stream_of(seed, step, buffer)
        for unit in range(scales.size):
            here = slice(unit * UNIT, min(unit * UNIT + UNIT, values.size))
            wide, narrow = values[here], codes[here]
            largest = np.uint32(0)
            for i in range(wide.size):
                largest = max(largest, _sign_last(wide[i]))
            scale = scales[unit] = _scale(largest)
            divisor = scale if scale != 0 else np.float32(1)
            low, high = key_of(stream, first + np.uint64(unit))
            spread = _SPREAD if abs(scale) > _SMALL else np.float32(0)
            for i in range(wide.size):
                ratio = np.float32(wide[i] / divisor)
                size = abs(ratio)
                place = fma(slopes[0], size, offsets[0])
                for line in range(1, lines):
                    place = min(place, fma(slopes[line], size, offsets[line]))
                place = min(one, max(place, fma(last_slope, size, last_offset)))
                if signed:
                    noise = np.float32(np.int32(random16(low, high, np.uint32(i)))) - _MIDDLE
                    level = np.int32(place + fma(noise, spread, _HALF))
                    narrow[i] = np.uint8(level if ratio >= 0 else -min(level, most_negative))
                else:
                    narrow[i] = np.uint8(max(np.int32(place + _HALF), np.int32(wide[i] != 0)))

    return narrow


@element
def _sign_last(value: Any) -> Any:
    # The bits of a float32 in the order of its magnitude, so that the largest is an integer's maximum.
    bits = np.float32(value).view(np.uint32)
    return np.uint32(np.uint32(bits << _1) | np.uint32(bits >> _31))


@element
def _scale(largest: Any) -> Any:
    size = np.uint32(largest >> _1)
    finite = _LARGEST if size == _INFINITY else size
    return np.uint32(finite | np.uint32(largest << _31)).view(np.float32)


_WIDEN = {True: _widening(SIGNED), False: _widening(UNSIGNED)}
_NARROW = {True: _narrowing(SIGNED), False: _narrowing(UNSIGNED)}
