"""Flat buffers in pieces: which of them a commit has to write, and bringing a buffer up to what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import xxhash
from redis import Redis

from optimd_service.store.redis.head import Chunk, Stored
from optimd_service.store.redis.keys import Keys
from optimd_service.types import BufferSize

# Redis takes values of this size into place as they arrive; larger ones gain nothing, and are copied more often.
CHUNK_BYTES = 2**20
READ_AT_ONCE = 32


def cut(flat: torch.Tensor, before: Stored | None, commit: str) -> tuple[Stored, dict[int, memoryview]]:
    """How a commit stores a buffer, and the chunks that it has to write, by number: those that have changed.

    Args:
      before: how the commit before has stored it.
    """
    size = BufferSize(flat.numel(), flat.dtype)
    known = before.chunks if before is not None and before.size == size else ()
    chunks, new = [], {}
    for number, piece in enumerate(_pieces(flat)):
        digest = _digest(piece)
        if number < len(known) and known[number].digest == digest:
            chunks.append(known[number])
        else:
            chunks.append(Chunk(commit, digest))
            new[number] = piece
    return Stored(size, tuple(chunks)), new


def load_(client: Redis, keys: Keys, name: str, stored: Stored, flat: torch.Tensor) -> bool:
    """Bring a buffer up to what is stored, reading what it does not hold already.

    Args:
      flat: of the stored size; written.

    Returns: False if some of it is not there.
    """
    wanted = [
        (number, piece, chunk)
        for number, (piece, chunk) in enumerate(zip(_pieces(flat), stored.chunks, strict=True))
        if _digest(piece) != chunk.digest
    ]
    return all(_read_(client, keys, name, wanted[at : at + READ_AT_ONCE]) for at in range(0, len(wanted), READ_AT_ONCE))


def _read_(client: Redis, keys: Keys, name: str, wanted: Sequence[tuple[int, memoryview, Chunk]]) -> bool:
    pipeline = client.pipeline(transaction=False)
    for number, _, chunk in wanted:
        pipeline.get(keys.chunk(name, number, chunk.commit))
    for (_, piece, chunk), value in zip(wanted, pipeline.execute(), strict=True):
        if value is None or _digest(value) != chunk.digest:
            return False
        piece[:] = value
    return True


def _pieces(flat: torch.Tensor) -> Iterator[memoryview]:
    memory = flat.view(torch.uint8).numpy().data
    return (memory[at : at + CHUNK_BYTES] for at in range(0, len(memory), CHUNK_BYTES))


def _digest(piece: memoryview | bytes) -> str:
    return xxhash.xxh3_128_hexdigest(piece)
