"""Tensors that are rounded to fewer bytes while they are sent: no second model in memory, only a piece of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimd._dtypes import DTYPES, PIECE, copy_

T = TypeVar("T")


class Narrowed(NamedTuple):
    """A tensor that travels in fewer bytes than it has.

    Attributes:
      dtype: of the wire, in safetensors' words.   shape: its extents.
      source: float32 or float64; it must not change until it has been sent.
    """

    dtype: str
    shape: tuple[int, ...]
    source: NDArray[np.floating]


def narrowed(tensors: Mapping[str, T], dtype: str, *, but: Collection[str] = ()) -> dict[str, T | Narrowed]:
    """Tensors as they are, except that floating-point arrays of more bytes an element than ``dtype`` are Narrowed.

    Args:
      dtype: in safetensors' words.   but: names of tensors that stay as they are.

    Raises: ValueError for a dtype that does not travel.
    """
    if dtype not in DTYPES:
        raise ValueError(f"gradients are sent in one of {', '.join(DTYPES).lower()}, not {dtype.lower()!r}")
    itemsize = DTYPES[dtype].itemsize

    def one(name: str, tensor: T) -> T | Narrowed:
        if isinstance(tensor, tuple) or name in but:  # its dtype was chosen with its bytes
            return tensor
        array = np.asarray(tensor)
        wide = array.dtype.kind == "f" and array.dtype.itemsize in range(itemsize + 1, 9)
        return Narrowed(dtype, array.shape, array) if wide else tensor

    return {name: one(name, tensor) for name, tensor in tensors.items()}


class Narrowing:
    """Narrowed tensors of one dtype, one behind the other, as pieces of a body.

    Args:
      tensors: in the order in which they are to lie there.
    """

    def __init__(self, tensors: Sequence[Narrowed]) -> None:
        self._tensors = tensors
        self._dtype = DTYPES[tensors[0].dtype]
        self._numel = sum(tensor.source.size for tensor in tensors)

    @property
    def nbytes(self) -> int:
        return self._numel * self._dtype.itemsize

    def cut(self, at: int) -> tuple[Narrowing, Narrowing]:
        """As two, the second of which begins with byte ``at``, inside this one and between two elements."""
        first: list[Narrowed] = []
        second: list[Narrowed] = []
        left = at // self._dtype.itemsize
        for tensor in self._tensors:
            size = tensor.source.size
            if 0 < left < size:
                flat = tensor.source.reshape(-1)
                first.append(tensor._replace(shape=(left,), source=flat[:left]))
                second.append(tensor._replace(shape=(size - left,), source=flat[left:]))
            else:
                (first if left > 0 else second).append(tensor)
            left -= size
        return Narrowing(first), Narrowing(second)

    def __iter__(self) -> Iterator[memoryview]:
        """Yield byte buffers that share one memory; small tensors come together."""
        piece = np.empty(min(PIECE, self._numel), self._dtype)
        filled = 0
        for source in (tensor.source for tensor in self._tensors):
            rest = np.ascontiguousarray(source, source.dtype.newbyteorder("<")).reshape(-1)
            while rest.size:
                taken = rest[: piece.size - filled]
                copy_(piece[filled : filled + taken.size], taken)
                filled, rest = filled + taken.size, rest[taken.size :]
                if filled == piece.size:
                    yield piece.view(np.uint8).data
                    filled = 0
        if filled:
            yield piece[:filled].view(np.uint8).data
