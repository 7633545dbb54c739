"""The safetensors format, as far as the wire needs it.

The safetensors library joins every tensor into one new bytes object to write, and copies each one to read. Here a
model's gradients go out, and its weights come in, without a copy: writing gives a header and a view of each array,
reading gives views of the body.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimd._dtypes import DTYPES, NATIVE
from optimd._exchange import Pieces
from optimd._narrowing import Narrowed, Narrowing
from optimd.errors import MalformedReply

Array: TypeAlias = NDArray[Any]
WireDtype = Literal["f32", "bf16", "f16", "f64"]
"""What weights can be pulled in, and gradients sent in."""

INDEX = "I64"
"""Of row numbers, which are sent and never received."""
_SENT = DTYPES | {INDEX: np.dtype("<i8")}
TEXT = "U8"
"""Of a text that stands behind the tensors of a reply."""
_RECEIVED = DTYPES | {TEXT: np.dtype("u1")}
_WIRE_NAMES = {dtype: name for name, dtype in NATIVE.items()}
_ALIGNMENT = 8
_METADATA = '{"__metadata__":'
_read_value = json.JSONDecoder().raw_decode


class RawTensor(NamedTuple):
    """A tensor as its bytes, for what NumPy has no dtype for.

    Attributes:
      dtype: "F32", "F64", "F16" or "BF16".   shape: its extents.
      data: C-contiguous buffer of exactly its elements, little-endian; writable where weights are to be received.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Any

    def bytes_view(self) -> memoryview:
        """The buffer as bytes. Raises: ValueError when it is not as long as dtype and shape say."""
        view = memoryview(self.data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if view.nbytes != _nbytes(self.dtype, self.shape):
            raise ValueError(f"{self.dtype} of shape {self.shape} does not fill a buffer of {view.nbytes} bytes")
        return view


class Entry(NamedTuple):
    """One tensor of a header: its dtype and shape, and its bytes' place behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def encode(
    tensors: Mapping[str, ArrayLike | RawTensor | Narrowed], metadata: Mapping[str, str]
) -> list[memoryview | Pieces]:
    """One safetensors file, as buffers to be sent one after the other.

    Args:
      tensors: in the order in which they are to lie in the file. A C-contiguous float array is not copied: it must
        not change until the buffers have been sent. Integers and booleans are sent as F64. A Narrowed one is rounded
        while it is sent.
      metadata: the file's `__metadata__`.

    Raises: TypeError for complex numbers, strings and objects; ValueError for a RawTensor that contradicts itself.
    """
    raw = {name: t if isinstance(t, Narrowed) else as_raw(t) for name, t in tensors.items()}
    entries = _entries_json(tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in raw.items()))
    # Metadata first, and the padding inside it: the rest of the header is the same at every step, and a server that
    # remembers it need not parse thousands of tensors again.
    start = ('{"__metadata__":' + json.dumps(metadata)[:-1]).encode()
    end = ("}" + entries + "}").encode()
    header = start + b" " * (-(len(start) + len(end)) % _ALIGNMENT) + end
    return [memoryview(len(header).to_bytes(8, "little") + header), *_payload(raw.values())]


def _payload(tensors: Iterable[RawTensor | Narrowed]) -> Iterator[memoryview | Pieces]:
    for is_narrowed, run in groupby(tensors, key=lambda tensor: isinstance(tensor, Narrowed)):
        if is_narrowed:
            yield Narrowing(cast("list[Narrowed]", list(run)))
        else:
            views = (cast("RawTensor", tensor).bytes_view() for tensor in run)
            yield from (view for view in views if view.nbytes)


def as_raw(tensor: ArrayLike | RawTensor) -> RawTensor:
    """The tensor's bytes in row-major order, without a copy where they lie so already."""
    if isinstance(tensor, RawTensor):
        if tensor.dtype not in _SENT:
            raise ValueError(f"a RawTensor of {tensor.dtype!r} cannot be sent: its dtype is one of {', '.join(DTYPES)}")
        return tensor
    array = np.asarray(tensor)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    name = _WIRE_NAMES.get(array.dtype) or _WIRE_NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise TypeError(f"an array of {array.dtype} cannot be sent: use float16, float32 or float64")
    return RawTensor(name, array.shape, np.ascontiguousarray(array, dtype=DTYPES[name]))


def wire_dtype(tensor: object) -> str | None:
    """The dtype in which a tensor is sent, as far as that can be told without a copy."""
    if isinstance(tensor, RawTensor | Narrowed):
        return tensor.dtype
    return _WIRE_NAMES.get(tensor.dtype) if isinstance(tensor, np.ndarray) else None


@lru_cache(maxsize=64)
def _entries_json(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> str:
    """The header's entries; a training loop sends the same ones at every step."""
    entries, at = [], 0
    for name, dtype, shape in tensors:
        stop = at + _nbytes(dtype, shape)
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, stop]}
        entries.append(f",{json.dumps(name)}:{json.dumps(entry)}")
        at = stop
    return "".join(entries)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape, start=_SENT[dtype].itemsize)


def header_length(prefix: memoryview, body_bytes: int) -> int:
    """How long the header is, from the first eight bytes. Raises: MalformedReply when it cannot be so long."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > body_bytes - 8:
        raise MalformedReply("The reply is too short to be a safetensors file.")
    return length


def decode_header(header: memoryview, data_bytes: int | None = None) -> tuple[list[tuple[str, Entry]], dict[str, str]]:
    """The tensors in the order of their bytes, and the metadata.

    Args:
      data_bytes: how many bytes of tensors there are, if that is known.

    Raises: MalformedReply unless the tensors fill ``data_bytes`` without a hole or an overlap.
    """
    try:
        first, rest = _parted(bytes(header).decode())
        entries, further = _entries(rest)
        metadata = {str(key): str(value) for key, value in (first | further).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedReply(f"The reply's safetensors header cannot be read: {error}.") from error
    said_bytes = entries[-1][1].stop if entries else 0
    if data_bytes is not None and said_bytes != data_bytes:
        raise MalformedReply(f"The reply holds {data_bytes} bytes of tensors where its header says {said_bytes}.")
    return entries, metadata


def _parted(header: str) -> tuple[dict[str, Any], str]:
    """The metadata, where it comes first, and a header without it, which is the same at every step."""
    if not header.startswith(_METADATA):
        return {}, header
    metadata, end = _read_value(header, len(_METADATA))
    return metadata, f"{_METADATA}{{}}{header[end:].rstrip()}"


@lru_cache(maxsize=8)
def _entries(header: str) -> tuple[list[tuple[str, Entry]], dict[str, Any]]:
    """The tensors of a header, in the order of their bytes, and its metadata; both are shared and only to be read."""
    document = json.loads(header)
    metadata = document.pop("__metadata__", {})
    entries = sorted(((name, _entry(**fields)) for name, fields in document.items()), key=_by_offset)
    at = 0
    for name, entry in entries:
        if entry.start != at or entry.stop - at != math.prod(entry.shape, start=_RECEIVED[entry.dtype].itemsize):
            raise MalformedReply(f"The reply's tensor {name!r} does not lie where it must.")
        at = entry.stop
    return entries, metadata


def _by_offset(item: tuple[str, Entry]) -> tuple[int, int]:
    return item[1].start, item[1].stop


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, stop = data_offsets
    if dtype not in _RECEIVED:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError("shapes and offsets are whole numbers")
    return Entry(dtype, tuple(shape), start, stop)
