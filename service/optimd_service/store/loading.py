"""A checkpoint read back, and every byte of it checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch

from optimd_service.errors import CheckpointCorrupt
from optimd_service.store.checkpoint import (
    BLOCK,
    CHECKSUMS,
    DTYPES,
    FORMAT,
    PARAMS,
    SESSION,
    STATE,
    Checkpoint,
    CheckpointInfo,
    checksum,
    seq_of,
)
from optimd_service.store.contract import Remembered, Working
from optimd_service.store.disk import PAGE, File
from optimd_service.store.regions import Region, bytes_of, memory, new_block, scatter_
from optimd_service.types import BufferSize, Receipt, Version

# One waits for the disk while another checks what it got.
READERS = 3
SUM = 8
"""Bytes of a checksum."""

Place = Callable[[str, BufferSize], torch.Tensor]
"""Gives the flat buffer into which ``params`` or ``state.<buffer>`` is read, of just that size, on any device."""


def host_memory(_: str, size: BufferSize) -> torch.Tensor:
    """A new buffer of the host's."""
    return torch.empty(size.numel, dtype=size.dtype)


class Header(NamedTuple):
    """What is read of a file before its blocks.

    Attributes:
      at: where the data begin.
      spans: tensor's name → its first byte among the data, and the last + 1.
      sums: of the blocks.
    """

    info: CheckpointInfo
    updates: int
    at: int
    spans: Mapping[str, tuple[int, int]]
    sums: Sequence[int]


def read_header(path: Path) -> Header:
    """Read what a checkpoint says of itself. Raises: CheckpointCorrupt; OSError."""
    with closing(File(path)) as file:
        text = _header_text(file, path)
        tensors = orjson.loads(text[8:])
        metadata = tensors.pop("__metadata__")
        _check_kind(path, metadata)
        spans = {name: tuple(tensor["data_offsets"]) for name, tensor in tensors.items()}
        sums = _sums(file, path, len(text), spans[CHECKSUMS])
        info = _info(metadata, tensors, file.size)
    return Header(info, int(metadata["updates"]), len(text), spans, sums)


def _header_text(file: File, path: Path) -> bytes:
    """The header as it was written, its length included."""
    length = 8 + int.from_bytes(_read(file, 0, 8), "little")
    if length % PAGE == 0 and length + 2 * SUM <= file.size:
        text = _read(file, 0, length)
        if _read(file, file.size - 2 * SUM, SUM) == checksum(text).to_bytes(SUM, "little"):
            return text
    raise _corrupt(path, "header")


def _check_kind(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata["format"] != FORMAT:
        raise CheckpointCorrupt(
            f"{path.name} is of the format {metadata['format']!r}, and this version of optimd reads {FORMAT!r}.",
            file=path.name,
            part="header",
            offset=0,
        )
    if seq_of(path.name) != int(metadata["seq"]):
        raise _corrupt(path, "name")


def _sums(file: File, path: Path, at: int, span: tuple[int, int]) -> list[int]:
    """The checksums of the blocks. ``at``: where the data begin."""
    begin, end = span
    sums = _read(file, at + begin, end - begin)
    if at + end != file.size or sums[-SUM:] != checksum(sums[:-SUM]).to_bytes(SUM, "little"):
        raise _corrupt(path, "checksums", at + begin)
    of_blocks: list[int] = np.frombuffer(sums, "<u8")[:-2].tolist()
    return of_blocks


def _info(metadata: Mapping[str, str], tensors: Mapping[str, Any], nbytes: int) -> CheckpointInfo:
    return CheckpointInfo(
        int(metadata["seq"]),
        Version(*map(int, metadata["version"].split("."))),
        tuple(json.loads(metadata["labels"])),
        datetime.fromisoformat(metadata["created_at"]),
        nbytes,
        {
            name: BufferSize(tensor["shape"][0], DTYPES[tensor["dtype"]])
            for name, tensor in tensors.items()
            if name == PARAMS or name.startswith(STATE)
        },
    )


def _read(file: File, at: int, nbytes: int) -> bytes:
    place = memoryview(bytearray(nbytes))
    return bytes(place[: file.read_into(at, place)])


def _corrupt(path: Path, part: str, offset: int = 0) -> CheckpointCorrupt:
    return CheckpointCorrupt(
        f"{path.name} is not what was written there: its {part}, from byte {offset} on, has changed. Look after the "
        "disk; an older checkpoint, and the journal behind it, hold the session as well.",
        file=path.name,
        part=part,
        offset=offset,
    )


def load(path: Path, place: Place = host_memory) -> Checkpoint:
    """Read a checkpoint.

    Args:
      place: gives the buffers; after an error what they hold means nothing.

    Raises: CheckpointCorrupt; OSError.
    """
    header = read_header(path)
    buffers = {name: place(name, size) for name, size in header.info.buffers.items()}
    regions = [
        Region(name, start, buffers[name].view(torch.uint8) if name in buffers else new_block(stop - start))
        for name, (start, stop) in header.spans.items()
    ]
    _read_blocks(path, header, regions)
    session = next(region.flat for region in regions if region.name == SESSION)
    return _checkpoint(header, buffers, json.loads(session.numpy().tobytes()))


def _read_blocks(path: Path, header: Header, regions: Sequence[Region]) -> None:
    """Fill the regions, in several threads."""
    end, _ = header.spans[CHECKSUMS]
    starts = iter(range(0, end, BLOCK))  # each thread takes the next

    def work() -> None:
        bounce = new_block(BLOCK)
        for start in starts:
            stop = min(start + BLOCK, end)
            there = memory(regions, start, stop)
            piece = bytes_of(bounce[: stop - start]) if there is None else there
            count = file.read_into(header.at + start, piece)
            if checksum(piece[:count]) != header.sums[start // BLOCK]:
                raise _corrupt(path, f"block {start // BLOCK}", header.at + start)
            if there is None:
                scatter_(regions, bounce[: stop - start], start)

    with closing(File(path)) as file, ThreadPoolExecutor(READERS) as readers:
        for done in [readers.submit(work) for _ in range(min(READERS, len(header.sums)))]:
            done.result()


def _checkpoint(header: Header, buffers: Mapping[str, torch.Tensor], session: Mapping[str, Any]) -> Checkpoint:
    state = {name.removeprefix(STATE): flat for name, flat in buffers.items() if name != PARAMS}
    started = {(group, buffer) for group, buffer in session["started"]}
    working = Working(buffers[PARAMS], state, header.updates, started, session["numbers"])
    remembered = {
        key: Remembered(Receipt(**receipt), bytes.fromhex(digest)) for key, digest, receipt in session["remembered"]
    }
    seq, version, labels, created_at, *_ = header.info
    return Checkpoint(seq, version, working, session["standing"], remembered, labels, created_at)
