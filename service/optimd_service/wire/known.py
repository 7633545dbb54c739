"""Headers that were read before: from one push to the next only ``__metadata__`` changes."""

from __future__ import annotations

from typing import Generic, TypeVar

from optimd_service.errors import MalformedJson
from optimd_service.wire.json import read_object
from optimd_service.wire.safetensors import MAX_HEADER_BYTES, METADATA

T = TypeVar("T")

_METADATA_START = b'{"' + METADATA.encode() + b'":{'


class KnownHeaders(Generic[T]):
    """What the newest headers were read as, by all that follows their metadata.

    When the metadata stands first, the rest is compared with what was read before, and thousands of tensors are not
    parsed again.

    Args:
      most: how many are known at once; together they are no longer than the longest header may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[bytes, T] = {}

    def find(self, raw: bytes) -> tuple[T, dict[str, str]] | None:
        """What a header was read as before, and its metadata now."""
        if not raw.startswith(_METADATA_START):
            return None
        for rest, read in self._known.items():
            if raw.endswith(rest):
                metadata = _metadata_alone(raw[: -len(rest)])
                if metadata is not None:
                    return read, metadata
        return None

    def keep(self, raw: bytes, read: T) -> None:
        """Remember what a header was read as, and forget the oldest where that is too many."""
        cut = raw.find(b"},") if raw.startswith(_METADATA_START) else -1
        # The first `},` ends the metadata unless a string inside it holds one; then nothing is remembered.
        if cut > 0 and _metadata_alone(raw[: cut + 1]) is not None:
            self._known[raw[cut + 1 :]] = read
            while len(self._known) > self._most or sum(map(len, self._known)) > MAX_HEADER_BYTES:
                del self._known[next(iter(self._known))]


def _metadata_alone(raw: bytes) -> dict[str, str] | None:
    """The metadata of a header cut off right behind it, or None where the cut does not fall there."""
    try:
        fields = read_object(raw + b"}")
    except MalformedJson:
        return None
    metadata = fields.get(METADATA)
    if len(fields) != 1 or not isinstance(metadata, dict):
        return None
    return metadata if all(isinstance(text, str) for text in metadata.values()) else None
