"""A checkpoint as a file: one session's whole state in safetensors, and checksums of every byte.

    length of the header | header, filled up with spaces to a whole page | data

The data are ``params``, ``state.<buffer>`` …, ``#session`` and ``#checksums``. What tells one state from another
stands in the header's ``__metadata__``; ``#session`` is JSON text: the session as it stands, its receipts by key, the
numbers that optimizers remember. ``#checksums`` are xxh3_64, as U64: of each block of the data before it, of the
header with its length, and of those checksums themselves. Anybody who reads safetensors reads this.

``#padding.<n>`` lets a buffer begin at the same distance from a page as it does in memory, so that the disk takes its
blocks from where they lie: safetensors itself knows no holes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch
import xxhash

from optimd_service.store.contract import Remembered, Working
from optimd_service.store.disk import PAGE
from optimd_service.store.regions import Region
from optimd_service.types import BufferSize, Version, utc_now

FORMAT = "optimd-checkpoint-1"
BLOCK = 4 * 2**20
"""Bytes that have one checksum, and are written at once."""
PARAMS, STATE, SESSION, CHECKSUMS, PADDING = "params", "state.", "#session", "#checksums", "#padding."

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


_FILE_NAME = re.compile(r"checkpoint-(\d{20})\.safetensors")


def file_name(seq: int) -> str:
    """What a checkpoint's file is called."""
    return f"checkpoint-{seq:020}.safetensors"


def seq_of(name: str) -> int | None:
    """The checkpoint whose file has this name; None for another file."""
    match = _FILE_NAME.fullmatch(name)
    return int(match[1]) if match else None


class CheckpointInfo(NamedTuple):
    """What a checkpoint's header says of it.

    Attributes:
      seq: of the newest record whose effect it holds.
      created_at: UTC.
      nbytes: of the file.
      buffers: ``params`` and ``state.<buffer>`` → its size.
    """

    seq: int
    version: Version
    labels: tuple[str, ...]
    created_at: datetime
    nbytes: int
    buffers: Mapping[str, BufferSize]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a session after one record.

    Attributes:
      standing: the session as it stands, a JSON object.
      remembered: receipts by key, the oldest first.
      labels: names under which it is kept.
    """

    seq: int
    version: Version
    working: Working
    standing: Mapping[str, Any]
    remembered: Mapping[str, Remembered]
    labels: tuple[str, ...] = ()
    created_at: datetime = field(default_factory=utc_now)

    def info(self, nbytes: int) -> CheckpointInfo:
        """As its header says it. ``nbytes``: of its file."""
        sizes = {name: BufferSize(flat.numel(), flat.dtype) for name, flat in self.buffers().items()}
        return CheckpointInfo(self.seq, self.version, self.labels, self.created_at, nbytes, sizes)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Name in the file → flat buffer."""
        return {PARAMS: self.working.params} | {STATE + name: flat for name, flat in self.working.state.items()}

    def header(self, regions: Sequence[Region]) -> bytes:
        """The file's beginning, its length included; whole pages."""
        dtypes = {name: DTYPE_NAMES[flat.dtype] for name, flat in self.buffers().items()} | {CHECKSUMS: "U64"}
        metadata = {
            "format": FORMAT,
            "seq": str(self.seq),
            "version": self.version.etag,
            "updates": str(self.working.updates),
            "labels": json.dumps(self.labels),
            "created_at": self.created_at.isoformat(),
        }
        tensors = {region.name: _entry(region, dtypes.get(region.name, "U8")) for region in regions}
        text = orjson.dumps({"__metadata__": metadata, **tensors})
        length = len(text) + (-len(text) - 8) % PAGE
        return length.to_bytes(8, "little") + text.ljust(length)

    def session_text(self) -> bytes:
        """What lies in ``#session``."""
        said = {
            "standing": self.standing,
            "remembered": [[key, kept.digest.hex(), kept.receipt._asdict()] for key, kept in self.remembered.items()],
            "started": sorted(self.working.started),
        }
        # Python's own JSON has infinity, from which some schedules begin.
        numbers = json.dumps(self.working.numbers).encode()
        return orjson.dumps({**said, "numbers": orjson.Fragment(numbers)})


def _entry(region: Region, dtype: str) -> dict[str, Any]:
    item = 8 if dtype == "U64" else DTYPES[dtype].itemsize
    return {"dtype": dtype, "shape": [region.flat.numel() // item], "data_offsets": [region.start, region.stop]}


def arrange(buffers: Mapping[str, torch.Tensor]) -> list[Region]:
    """Where the buffers lie, by their names in the file."""
    regions: list[Region] = []
    for name, flat in buffers.items():
        _append(regions, name, flat, _shift(flat))
    return regions


def close_off(regions: Sequence[Region], session: bytes) -> list[Region]:
    """What follows behind the buffers: ``session``, the text, and the checksums, still zero, as the last."""
    closed = list(regions)
    _append(closed, SESSION, torch.frombuffer(bytearray(session), dtype=torch.uint8), 0)
    end = closed[-1].stop + -closed[-1].stop % 8
    _append(closed, CHECKSUMS, torch.zeros(8 * (-(-end // BLOCK) + 2), dtype=torch.uint8), end)
    return closed[len(regions) :]


def _append(regions: list[Region], name: str, flat: torch.Tensor, shift: int) -> None:
    """Let a buffer follow, ``shift`` bytes behind a page's beginning."""
    at = regions[-1].stop if regions else 0
    missing = (shift - at) % PAGE
    if missing:
        regions.append(Region(f"{PADDING}{len(regions)}", at, torch.zeros(missing, dtype=torch.uint8)))
    regions.append(Region(name, at + missing, flat.view(torch.uint8)))


def _shift(flat: torch.Tensor) -> int:
    """How far behind a page's beginning a buffer is to lie."""
    address = flat.data_ptr() if flat.is_cpu else 0
    return 0 if address % 8 else address % PAGE


def checksum(block: memoryview | bytes) -> int:
    """One that finds any flipped bit: xxh3_64."""
    return xxhash.xxh3_64_intdigest(block)


def seal(sums: Sequence[int], header: bytes) -> bytes:
    """What lies in ``#checksums``: ``sums`` of the blocks, the header's, and that of those."""
    above = np.array([*sums, checksum(header)], dtype="<u8").tobytes()
    return above + checksum(above).to_bytes(8, "little")
