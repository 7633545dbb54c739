"""Receiving weights: into one new buffer, or straight into arrays that the caller has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from optimd import _safetensors
from optimd._safetensors import Array, Entry, RawTensor
from optimd.errors import MalformedReply

Out: TypeAlias = Mapping[str, Array | RawTensor]


class TensorSink:
    """Takes a safetensors reply; `tensors` and `metadata` are there once every place has been filled.

    Args:
      out: where to write each tensor; the ones it does not name get memory of their own. An array of the reply's
        dtype that is C-contiguous is written by the socket itself; another array gets a converted copy; a RawTensor
        must have the reply's dtype.
    """

    tensors: dict[str, Array]
    metadata: dict[str, str]

    def __init__(self, out: Out | None = None) -> None:
        self._out = out
        self.tensors = {}
        self.metadata = {}

    def places(self, length: int) -> Iterator[memoryview]:
        return self._whole(length) if self._out is None else self._scattered(self._out, length)

    def _whole(self, length: int) -> Iterator[memoryview]:
        body = np.empty(length, np.uint8).data
        if length:
            yield body
        self.tensors, self.metadata = _safetensors.decode(body)

    def _scattered(self, out: Out, length: int) -> Iterator[memoryview]:
        prefix = memoryview(bytearray(min(8, length)))
        yield prefix
        header = memoryview(bytearray(_safetensors.header_length(prefix, length)))
        yield header
        entries, self.metadata = _safetensors.decode_header(header, length - 8 - len(header))
        self.tensors = {}
        for name, entry in entries:
            yield from self._one(name, entry, out.get(name))

    def _one(self, name: str, entry: Entry, target: Array | RawTensor | None) -> Iterator[memoryview]:
        if target is not None and tuple(target.shape) != entry.shape:
            raise MalformedReply(f"The reply's tensor {name!r} has shape {entry.shape}, not the session's.")
        direct = _writable_bytes(entry, target)
        place = np.empty(entry.stop - entry.start, np.uint8).data if direct is None else direct
        if place.nbytes:
            yield place
        if isinstance(target, RawTensor):
            return
        if target is None:
            target = _safetensors.to_array(entry, place)
        elif direct is None:
            np.copyto(target, _safetensors.to_array(entry, place), casting="same_kind")
        self.tensors[name] = target


def _writable_bytes(entry: Entry, target: Array | RawTensor | None) -> memoryview | None:
    """The target's own bytes when the tensor can be received straight into them."""
    if isinstance(target, RawTensor):
        if target.dtype != entry.dtype:
            raise ValueError(f"a RawTensor of {target.dtype} cannot receive {entry.dtype}: pull with its own dtype")
        return target.bytes_view()
    if target is None or not target.flags.c_contiguous or not entry.is_of(target.dtype):
        return None
    return target.reshape(-1).view(np.uint8).data


def check_out(out: Out | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse, before anything is sent, arrays that the weights cannot be written into.

    Raises: ValueError naming the tensor that the session lacks, that has another shape, that is read-only, or that
      holds no floating-point numbers.
    """
    for name, target in (out or {}).items():
        if name not in shapes:
            raise ValueError(f"the session has no tensor {name!r} to write into out")
        if tuple(target.shape) != shapes[name]:
            raise ValueError(f"out[{name!r}] has shape {tuple(target.shape)}, and the session's is {shapes[name]}")
        if not _is_writable(target):
            raise ValueError(f"out[{name!r}] is not a writable array of floating-point numbers")


def _is_writable(target: Array | RawTensor) -> bool:
    if isinstance(target, RawTensor):
        return not target.bytes_view().readonly or not target.bytes_view().nbytes
    return bool(target.flags.writeable) and target.dtype.kind == "f"
