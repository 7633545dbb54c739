"""The dtypes that travel, and conversions between them into memory that is already there.

NumPy has no bfloat16: an array of uint16 stands for one, element by element its sixteen bits.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""Safetensors' names → what NumPy holds their elements in."""
NATIVE = {name: dtype for name, dtype in DTYPES.items() if dtype.kind == "f"}
"""Those that NumPy has."""
BF16, F32 = DTYPES["BF16"], DTYPES["F32"]
_KNOWN = frozenset(DTYPES.values())

PIECE = 2**18
"""Elements that are sent or received at a time where they are converted: what the socket writes is still in a cache."""
# Elements converted at a time: few enough that what one pass over them writes is still in a cache for the next.
_BLOCK = 2**16
# torch shares longer copies among threads, which then spin, on cores that sender and server need.
_UNSHARED = 2**15


def copy_(out: NDArray[Any], source: NDArray[Any]) -> None:
    """Write ``source`` into ``out``, converting its dtype.

    Each number is rounded to the nearest, ties to even, two-byte dtypes by way of float32; one beyond the range becomes
    infinity, and NaN stays NaN.

    Args:
      out, source: shape [n], C-contiguous, floating-point or bfloat16.
    """
    torch = _torch_for(out, source)
    block = _BLOCK if torch is None else _UNSHARED if torch.get_num_threads() > 1 else max(1, source.size)
    for start in range(0, source.size, block):
        to, part = out[start : start + block], source[start : start + block]
        if torch is None:
            _copy_block_(to, part)
        else:
            _as_torch(torch, to).copy_(_as_torch(torch, part))


def add_(out: NDArray[np.float32], source: NDArray[Any]) -> None:
    """Add ``source``, as float32, to ``out``; both of shape [n], C-contiguous."""
    wide = np.empty(min(_BLOCK, source.size), F32)
    for start in range(0, source.size, _BLOCK):
        part = source[start : start + _BLOCK]
        copy_(wide[: part.size], part)
        out[start : start + _BLOCK] += wide[: part.size]


def _torch_for(out: NDArray[Any], source: NDArray[Any]) -> Any:
    """torch, three to ten times as fast as NumPy, where the program has it anyway and it takes these arrays."""
    torch = sys.modules.get("torch")
    # Another thread may be importing it at this moment.
    usable = hasattr(torch, "from_numpy") and source.flags.writeable
    return torch if usable and {out.dtype, source.dtype} <= _KNOWN else None


def _as_torch(torch: Any, array: NDArray[Any]) -> Any:
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _copy_block_(out: NDArray[Any], source: NDArray[Any]) -> None:
    if 2 in {out.itemsize, source.itemsize} and F32 not in {out.dtype, source.dtype} and out.dtype != source.dtype:
        wide = np.empty(source.size, F32)
        _copy_block_(wide, source)
        source = wide
    if BF16 not in {out.dtype, source.dtype} or out.dtype == source.dtype:
        with np.errstate(over="ignore", invalid="ignore"):  # torch says nothing either
            np.copyto(out, source, casting="same_kind")
    elif out.dtype == BF16:
        _narrow_(out, source)
    else:
        _widen_(out, source)


def _narrow_(out: NDArray[np.uint16], source: NDArray[np.float32]) -> None:
    """float32 → bfloat16: the upper sixteen bits, plus one where the lower ones say so."""
    bits = source.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # a tie goes up from an odd number alone
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    np.copyto(out, rounded, casting="unsafe")
    nan = np.isnan(source)
    if nan.any():  # rounded up, its bits could be those of a zero
        out[nan] = 0x7FC0


def _widen_(out: NDArray[np.float32], source: NDArray[np.uint16]) -> None:
    bits = out.view(np.uint32)
    np.copyto(bits, source)
    bits <<= 16
