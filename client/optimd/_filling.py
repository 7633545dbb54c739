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
    if isinstance(target, RawTensor):
        yield from _fill_flat(np.frombuffer(target.bytes_view(), DTYPES[target.dtype]), entry, write_)
    elif target.flags.c_contiguous:
        yield from _fill_flat(target.reshape(-1), entry, write_)
    else:
        beside = target.copy("C")
        yield from _fill_flat(beside.reshape(-1), entry, write_)
        target[...] = beside


def _fill_flat(flat: NDArray[Any], entry: Entry, write_: Write) -> Iterator[memoryview]:
    dtype = DTYPES[entry.dtype]
    if write_ is copy_ and flat.dtype == dtype:
        yield flat.view(np.uint8).data
        return
    piece = np.empty(min(PIECE, flat.size), dtype)
    for start in range(0, flat.size, PIECE):
        part = piece[: flat.size - start]
        yield part.view(np.uint8).data
        write_(flat[start : start + PIECE], part)
