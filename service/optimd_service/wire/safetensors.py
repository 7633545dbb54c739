"""The safetensors format, read strictly and written in place.

    [0:8]      N, the length of the header, little-endian
    [8:8+N]    the header: one JSON object, may be padded with spaces at its end
    [8+N:]     the payload: the tensors' elements, little-endian, row by row, without holes or overlaps

The header is checked whole before a byte of payload is used. The format's own library reads a finished file from
memory; here the payload lands in the gradient buffer while it arrives, so the header has to be read by itself.
Source: the format's description, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from optimd_service.errors import MalformedJson, MalformedSafetensors, TooLarge
from optimd_service.wire.dtypes import ITEM_BYTES, wire_dtype
from optimd_service.wire.json import read_object, write_json

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 32
METADATA = "__metadata__"
INDEX = "I64"
"""The dtype of row numbers, in bodies whose gradients may name their rows; no tensor has it."""
_INDEX_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63 - 1


class Entry(NamedTuple):
    """One tensor of a header: ``start`` and ``stop`` are bytes into the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A checked header: entries in payload order, without holes, ``payload_bytes`` in all."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    payload_bytes: int


def _broken(rule: str, detail: str, **evidence: Any) -> MalformedSafetensors:
    return MalformedSafetensors(detail, rule=rule, **evidence)


def header_bytes(prefix: bytes) -> int:
    """Read the length of the header from the first eight bytes of a file.

    Raises: MalformedSafetensors(rule="length"), TooLarge.
    """
    if len(prefix) < PREFIX_BYTES:
        raise _broken("length", f"A safetensors file starts with 8 bytes of header length; {len(prefix)} came.")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise TooLarge(
            f"The safetensors header claims {length} bytes; this server reads at most {MAX_HEADER_BYTES}.",
            limit=MAX_HEADER_BYTES,
        )
    return length


def read_header(raw: bytes, *, indices: str | None = None) -> Header:
    """Read and check a whole header.

    Args:
      indices: entries whose names end so may be I64; whoever passes it makes sure that they are no tensors.

    Raises: MalformedSafetensors naming the rule and the tensor, UnsupportedDtype, TooLarge.
    """
    # Checked by byte: a reader that skips leading blanks or a mark would see another file than we do.
    if raw[:1] != b"{":
        raise _broken("start", "The safetensors header must start with '{'.")
    fields = _read_object(raw)
    metadata = _metadata(fields.pop(METADATA, {}))
    if len(fields) > MAX_TENSORS:
        raise TooLarge(f"{len(fields)} tensors; at most {MAX_TENSORS} in one body.", limit=MAX_TENSORS)
    read = (_entry(name, value, indices) for name, value in fields.items())
    entries = tuple(sorted(read, key=lambda e: (e.start, e.stop)))
    return Header(entries, metadata, _check_contiguous(entries))


def _read_object(raw: bytes) -> dict[str, Any]:
    try:
        return read_object(raw)
    except MalformedJson as error:
        rule = {"utf-8": "utf-8", "duplicate-field": "duplicate"}.get(error.evidence["reason"], "json")
        raise _broken(rule, f"In the safetensors header: {error.detail}") from None


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _broken("metadata", "`__metadata__` must map strings to strings.")
    return value


def _entry(name: str, value: Any, indices: str | None) -> Entry:
    label = name[:80]
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise _broken("entry", f"Tensor {label!r} must have dtype, shape and data_offsets alone.", tensor=label)
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_sizes(shape, MAX_DIMENSIONS) or math.prod(shape) > _LARGEST:
        rule = f"at most {MAX_DIMENSIONS} sizes, below 2⁶³ together"
        raise _broken("shape", f"Tensor {label!r} has a shape that is no list of {rule}.", tensor=label)
    if not _are_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken("offsets", f"Tensor {label!r} has data_offsets that are not [begin, end].", tensor=label)
    dtype = value["dtype"]
    index = dtype == INDEX and indices is not None and name.endswith(indices)
    if not index:
        wire_dtype(dtype if isinstance(dtype, str) else repr(dtype)[:40], label)
    start, stop = offsets
    if stop - start != math.prod(shape) * (_INDEX_BYTES if index else ITEM_BYTES[dtype]):
        raise _broken(
            "span", f"Tensor {label!r}: {dtype} {shape} does not fill its {stop - start} bytes exactly.", tensor=label
        )
    return Entry(name, dtype, tuple(shape), start, stop)


def _are_sizes(value: Any, most: int) -> bool:
    # The length first: the product of a million sizes would take hours.
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n <= _LARGEST for n in value)


def _check_contiguous(entries: Iterable[Entry]) -> int:
    """The payload's length; raises on holes and overlaps, which would let one file be read as two."""
    at = 0
    for entry in entries:
        if entry.start != at:
            rule = "hole" if entry.start > at else "overlap"
            label = entry.name[:80]
            raise _broken(rule, f"Tensor {label!r} begins at byte {entry.start}, not at {at}.", tensor=label)
        at = entry.stop
    return at


def write_entries(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The part of a header that names tensors: constant for a session, so it is written once."""
    at, parts = 0, list[bytes]()
    for name, (dtype, shape) in tensors.items():
        stop = at + math.prod(shape) * ITEM_BYTES[dtype]
        entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        parts.append(b"," + write_json(name) + b":" + write_json(entry))
        at = stop
    return b"".join(parts)


def write_metadata(metadata: Mapping[str, str]) -> bytes:
    """The part of a header that changes from step to step."""
    return write_json({METADATA: dict(metadata)})[:-1]


def assemble_header(metadata: bytes, entries: bytes) -> bytes:
    """The first bytes of a file: prefix, metadata, entries in payload order, and padding to a multiple of eight."""
    text = metadata + entries + b"}"
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text
