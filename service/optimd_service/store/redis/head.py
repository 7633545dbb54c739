"""What a commit publishes: a small value that says where the large ones are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from optimd_service.store.redis.keys import Keys
from optimd_service.types import Buffers, BufferSize, Version

PARAMS = "params"

_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}


def name_of(buffer: str) -> str:
    """What a state buffer is called among the stored: no such name is that of the weights."""
    return f"state.{buffer}"


class Chunk(NamedTuple):
    """A piece of a buffer: which commit wrote it, and the digest of its bytes."""

    commit: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stored:
    """One buffer in Redis: its chunks, in their order."""

    size: BufferSize
    chunks: tuple[Chunk, ...]

    def keys(self, keys: Keys, name: str) -> Iterator[str]:
        """Where the chunks are."""
        return (keys.chunk(name, number, chunk.commit) for number, chunk in enumerate(self.chunks))


@dataclass(frozen=True, slots=True)
class Head:
    """One commit of a session. Names no tensors' bytes: those are found by the chunks' names.

    Attributes:
      seq: counts the commits, from 1; 0 before the first.
      mark: drawn at random for each. With it no two commits have one name: not one that was given up and the next,
        and not one that Redis has forgotten and what was written in its place.
      stored: ``PARAMS`` and ``name_of`` each state buffer → where they are.
      updates, started, numbers: as in ``Working``.
    """

    seq: int = 0
    mark: str = ""
    version: Version = field(default_factory=lambda: Version(0, 0))
    stored: Mapping[str, Stored] = field(default_factory=dict)
    updates: int = 0
    started: frozenset[tuple[str, str]] = frozenset()
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        """The commit's name; empty before the first."""
        return f"{self.seq}.{self.mark}" if self.seq else ""

    @property
    def buffers(self) -> Buffers:
        """Sizes of the state buffers, by their own names."""
        prefix = name_of("")
        return {name.removeprefix(prefix): s.size for name, s in self.stored.items() if name.startswith(prefix)}

    def chunk_keys(self, keys: Keys) -> list[str]:
        """Where all chunks are."""
        return [key for name, stored in self.stored.items() for key in stored.keys(keys, name)]

    def to_json(self) -> str:
        # Python's own JSON: it writes infinity, and every number so that it is read as it was.
        stored = {name: [s.size.numel, _dtype_name(s.size.dtype), s.chunks] for name, s in self.stored.items()}
        return json.dumps([self.seq, self.mark, self.version, stored, self.updates, [*self.started], self.numbers])

    @classmethod
    def from_json(cls, text: bytes | str) -> Head:
        """What ``to_json`` gave."""
        seq, mark, version, stored, updates, started, numbers = json.loads(text)
        return cls(
            seq,
            mark,
            Version(*version),
            {name: _stored(*value) for name, value in stored.items()},
            updates,
            frozenset((group, buffer) for group, buffer in started),
            numbers,
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored(numel: int, dtype: str, chunks: list[Any]) -> Stored:
    return Stored(BufferSize(numel, _BY_NAME[dtype]), tuple(Chunk(*chunk) for chunk in chunks))
