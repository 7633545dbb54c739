"""How one record lies in a segment of the journal.

    head, one page │ payload, padded to whole pages │ meta, padded to whole pages

The head says how long the others are. It holds the segment's salt, which nobody outside the server knows: no payload
can be taken for a head, whatever somebody sends. The meta is JSON: what the record is, and a checksum for each block of
its payload. The head is sealed by a checksum of its own and holds that of the meta, each taken over its padding too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import xxhash

from optimd_service.store.disk import PAGE, padded

VERSION = 1
BLOCK = 4 * 2**20
"""Bytes of payload that have a checksum of their own."""
MAGIC = b"optimd-r"
SALT_BYTES = 16
# A checksum in JSON, and what stands around them all.
_SUM_BYTES = 21
_META_BYTES = 64

_HEAD = struct.Struct(f"<8sI4x{SALT_BYTES}sQQQQ")
_SEAL = struct.Struct("<Q")


class Head(NamedTuple):
    """The first page of a record.

    Attributes:
      seq: number of the record in its session, from 1.
      meta_sum: checksum of the meta and its padding.
    """

    seq: int
    payload_bytes: int
    meta_bytes: int
    meta_sum: int

    @property
    def nbytes(self) -> int:
        """Of the whole record."""
        return PAGE + padded(self.payload_bytes) + padded(self.meta_bytes)

    @property
    def meta_at(self) -> int:
        """Where the meta begins, counted from the head."""
        return PAGE + padded(self.payload_bytes)

    def pack(self, salt: bytes) -> bytes:
        """One page."""
        return seal(_HEAD.pack(MAGIC, VERSION, salt, *self))

    @classmethod
    def unpack(cls, page: memoryview, salt: bytes) -> Head | None:
        """The head, if this page is one of the segment with that salt."""
        if not is_sealed(page):
            return None
        magic, version, found, *fields = _HEAD.unpack_from(page)
        return cls(*fields) if (magic, version, found) == (MAGIC, VERSION, salt) else None


def seal(content: bytes) -> bytes:
    """A page that ends with a checksum of the rest of it."""
    rest = content.ljust(PAGE - _SEAL.size, b"\0")
    return rest + _SEAL.pack(xxhash.xxh3_64_intdigest(rest))


def is_sealed(page: memoryview) -> bool:
    """Whether this is what ``seal`` has made."""
    end = PAGE - _SEAL.size
    return len(page) == PAGE and _SEAL.unpack_from(page, end)[0] == xxhash.xxh3_64_intdigest(page[:end])


class Meta(NamedTuple):
    """What a record says of itself.

    Attributes:
      kind: of the change.   fields: anything that JSON can hold.
      sums: one checksum for each block of the payload.
    """

    kind: str
    fields: Mapping[str, Any]
    sums: Sequence[int]

    def pack(self) -> bytes:
        """JSON. A float that is not finite becomes null. Raises: TypeError, for what is not JSON."""
        try:
            return orjson.dumps(self._asdict())
        except TypeError:
            # A lone surrogate, or an integer beyond 64 bits: the slow writer escapes it.
            return json.dumps(self._asdict()).encode()

    @classmethod
    def unpack(cls, text: bytes) -> Meta:
        """What was packed; not by orjson, which rounds the integers that only the slow writer writes."""
        return cls(**json.loads(text))

    @staticmethod
    def room(meta_bytes: int, payload_bytes: int) -> int:
        """Bytes that fields of ``meta_bytes`` take beside the checksums of such a payload."""
        return meta_bytes + _META_BYTES + _SUM_BYTES * -(-payload_bytes // BLOCK)


def sum_of(content: bytes | bytearray | memoryview) -> int:
    """The checksum that is used for everything in the journal."""
    return xxhash.xxh3_64_intdigest(content)


class Sums:
    """The checksums of a payload's blocks, taken of its pieces while they are in the cache.

    The pieces of one block come in order, and blocks in any order. A block may begin anew.

    Args:
      payload_bytes: how long the payload will be.
    """

    def __init__(self, payload_bytes: int) -> None:
        self._nbytes = payload_bytes
        self._sums: list[int | None] = [None] * -(-payload_bytes // BLOCK)
        self._begun: dict[int, tuple[int, xxhash.xxh3_64]] = {}

    def take(self, at: int, piece: memoryview) -> None:
        """Raises: ValueError, for a piece that is not of this payload or leaves out what is before it in its block."""
        if at + len(piece) > self._nbytes:
            raise ValueError(f"bytes {at} to {at + len(piece)} are not in a payload of {self._nbytes}")
        start = 0
        while start < len(piece):
            block, begin = divmod(at + start, BLOCK)
            part = piece[start : start + BLOCK - begin]
            self._take_part(block, begin, part)
            start += len(part)

    def _take_part(self, block: int, begin: int, part: memoryview) -> None:
        stop, whole = begin + len(part), min(BLOCK, self._nbytes - block * BLOCK)
        if not begin and stop == whole:
            self._sums[block] = sum_of(part)
            return
        came, digest = self._begun.pop(block, (0, None)) if begin else (0, None)
        if came != begin:
            raise ValueError(f"byte {begin} of block {block} comes after byte {came}")
        digest = digest or xxhash.xxh3_64()
        digest.update(part)
        self._sums[block] = digest.intdigest() if stop == whole else None
        if stop < whole:
            self._begun[block] = stop, digest

    def all(self) -> list[int]:
        """One a block. Raises: ValueError, if some of the payload has not come."""
        sums = [each for each in self._sums if each is not None]
        if len(sums) < len(self._sums):
            raise ValueError("some of the payload has not come")
        return sums
