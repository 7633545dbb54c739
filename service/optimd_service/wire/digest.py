"""What tells one body from another, whichever way its bytes came."""

from __future__ import annotations

from collections import defaultdict

import xxhash

from optimd_service.types import Span

# What is received at a time where nothing is converted; a segment of a body ends where one of these does.
BLOCK = 2**20


class BodyDigest:
    """16 bytes for a header and the payload behind it: the same whether the payload came whole or in segments.

    Each block of the flat buffer has a digest of its own, so that several threads may bring one each. The header says
    where in the payload a block lies.
    """

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._blocks: defaultdict[int, xxhash.xxh3_128] = defaultdict(xxhash.xxh3_128)

    def update(self, place: memoryview, span: Span) -> None:
        """The bytes of elements ``span`` have come, all in one block; those of a block come in payload order."""
        self._blocks[span.start // BLOCK].update(place)

    def digest(self) -> bytes:
        whole = xxhash.xxh3_128(self._header)
        for _, block in sorted(self._blocks.items()):
            whole.update(block.digest())
        return whole.digest()
