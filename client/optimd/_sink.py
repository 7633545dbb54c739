"""Receiving weights: into one new buffer, or straight into arrays that the caller has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, starmap
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optimd import _safetensors
from optimd._dtypes import DTYPES, NATIVE, add_, copy_
from optimd._filling import Write, fill, fill_flat, flattened
from optimd._safetensors import TEXT, Array, Entry, RawTensor
from optimd.errors import MalformedReply

Out: TypeAlias = Mapping[str, Array | RawTensor]
Entries: TypeAlias = Sequence[tuple[str, Entry]]


RECEIPT = "receipt"
# The entry that a receipt stands in where it comes behind the weights.
_TRAILING = f"#{RECEIPT}"


class Arriving(Protocol):
    """Is told how weights come in, by the thread that receives them; from the start again when a reply is retried."""

    def began(self) -> None:
        """The tensors are about to come: a push that asked for them has been judged."""
        ...

    def arrived(self, name: str) -> None:
        """A tensor is there, whole."""
        ...


class TensorSink:
    """Takes a safetensors reply; `tensors` and `metadata` are there once every place has been filled.

    Args:
      out: where to write each tensor; the ones it does not name get memory of their own. One of the reply's dtype
        that is C-contiguous is written by the socket itself; for another, the numbers are converted piece by piece.
      arriving: is told of each tensor; needs an ``out``.
      shown: the token of what ``out`` holds, which was shown to the server: a reply may be the difference to it.
    """

    tensors: dict[str, Array]
    metadata: dict[str, str]

    def __init__(self, out: Out | None = None, arriving: Arriving | None = None, shown: str | None = None) -> None:
        self._out = out
        self._shown = shown
        self._arriving = arriving
        self.tensors = {}
        self.metadata = {}

    def places(self, length: int) -> Iterator[memoryview]:
        prefix = memoryview(bytearray(min(8, length)))
        yield prefix
        header = memoryview(bytearray(_safetensors.header_length(prefix, length)))
        yield header
        payload_bytes = length - 8 - len(header)
        entries, self.metadata = _safetensors.decode_header(header, payload_bytes)
        self.tensors = {}
        trail = entries[-1][1] if entries and entries[-1][0] == _TRAILING else None
        if trail is not None:
            entries, payload_bytes = entries[:-1], trail.start
        if any(entry.dtype == TEXT for _, entry in entries):
            raise MalformedReply("The reply has a text where a tensor must stand.")
        write_ = self._way_to_write()
        if self._arriving is not None:
            self._arriving.began()
        if self._out is None and all(entry.dtype in NATIVE for _, entry in entries):
            yield from self._whole(entries, payload_bytes)
        else:
            yield from self._scattered(entries, self._out or {}, write_)
        if trail is not None:
            text = bytearray(trail.stop - trail.start)
            yield memoryview(text)
            self.metadata[RECEIPT] = text.decode(errors="replace")

    def _way_to_write(self) -> Write:
        """Raises: MalformedReply for the difference to anything but what was shown."""
        base = self.metadata.get("difference")
        if base is None:
            return copy_
        if base != self._shown:
            raise MalformedReply("The reply is the difference to weights that are not here.")
        return add_

    def _whole(self, entries: Entries, payload_bytes: int) -> Iterator[memoryview]:
        payload = np.empty(payload_bytes, np.uint8)
        if payload_bytes:
            yield payload.data
        for name, entry in entries:
            elements = payload[entry.start : entry.stop].view(DTYPES[entry.dtype])
            self.tensors[name] = elements.reshape(entry.shape)

    def _scattered(self, entries: Entries, out: Out, write_: Write) -> Iterator[memoryview]:
        for name, entry in entries:
            yield from self._one(name, entry, out.get(name), write_)
            if self._arriving is not None:
                self._arriving.arrived(name)

    def halves(self, entries: Entries, at: int) -> tuple[Iterator[memoryview], Iterator[memoryview]]:
        """Places for a payload that comes in two halves at once, cut at byte ``at``; each half is filled in turn.

        Args:
          entries: of the whole payload, which goes to arrays whose elements lie one behind the other.

        Raises: MalformedReply, for a payload that is not what was promised.
        """
        parts: list[list[tuple[NDArray[Any], str]]] = [[], []]
        for name, entry in entries:
            target = self._target(name, entry, (self._out or {}).get(name))
            flat, numel = flattened(target), max(0, at - entry.start) // DTYPES[entry.dtype].itemsize
            parts[0].append((flat[:numel], entry.dtype))
            parts[1].append((flat[numel:], entry.dtype))
        first, second = (chain.from_iterable(starmap(fill_flat, part)) for part in parts)
        return first, second

    def _one(self, name: str, entry: Entry, target: Array | RawTensor | None, write_: Write) -> Iterator[memoryview]:
        yield from fill(self._target(name, entry, target), entry, write_)

    def _target(self, name: str, entry: Entry, target: Array | RawTensor | None) -> Array | RawTensor:
        if target is None:
            target = np.empty(entry.shape, NATIVE.get(entry.dtype, np.float32))
        if tuple(target.shape) != entry.shape:
            raise MalformedReply(f"The reply's tensor {name!r} has shape {entry.shape}, not the session's.")
        if not isinstance(target, RawTensor):
            self.tensors[name] = target
        return target


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
        view = target.bytes_view()
        return target.dtype in DTYPES and (not view.readonly or not view.nbytes)
    return bool(target.flags.writeable) and target.dtype.kind == "f"
