"""Where one tensor of a reply goes: the socket writes there itself, or into a piece of memory that is used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optimd._dtypes import DTYPES, PIECE, copy_
from optimd._safetensors import Array, Entry, RawTensor

Write: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], None]


def fill(target: Array | RawTensor, entry: Entry, write_: Write = copy_) -> Iterator[memoryview]:
    """Yield byte buffers to be filled in turn with the bytes of ``entry``; ``target`` has it when there are no more.

    Args:
      target: of the entry's shape, any floating-point dtype, writable.
      write_: given elements of ``target`` and those that came for them; other than ``copy_``, it reads the first too.
    """
    if entry.start == entry.stop:
        return
    if isinstance(target, RawTensor) or target.flags.c_contiguous:
        yield from fill_flat(flattened(target), entry.dtype, write_)
    else:
        beside = target.copy("C")
        yield from fill_flat(beside.reshape(-1), entry.dtype, write_)
        target[...] = beside


def is_flat(target: Array | RawTensor) -> bool:
    """Whether its elements lie one behind the other."""
    return isinstance(target, RawTensor) or target.flags.c_contiguous


def flattened(target: Array | RawTensor) -> NDArray[Any]:
    """A view of its elements, shape [n], where they lie one behind the other."""
    if isinstance(target, RawTensor):
        return np.frombuffer(target.bytes_view(), DTYPES[target.dtype])
    return target.reshape(-1)


def fill_flat(flat: NDArray[Any], wire: str, write_: Write = copy_) -> Iterator[memoryview]:
    """``fill`` for elements of shape [n], as they come in the dtype ``wire``."""
    dtype = DTYPES[wire]
    if not flat.size:
        return
    if write_ is copy_ and flat.dtype == dtype:
        yield flat.view(np.uint8).data
        return
    piece = np.empty(min(PIECE, flat.size), dtype)
    for start in range(0, flat.size, PIECE):
        part = piece[: flat.size - start]
        yield part.view(np.uint8).data
        write_(flat[start : start + PIECE], part)
