"""Weights or state that were replaced by others, kept with what took their place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optimd_service.session.standing import Standing
from optimd_service.store.contract import Entry, Record, StoredState, Working
from optimd_service.types import Buffers, BufferSize, Version
from optimd_service.wire.flat import flat_bytes

REPLACED = "replaced"
"""The kind of such a record."""
PARAMS = "params"


class Replacing:
    """One replacement on its way into a store that keeps it.

    Args:
      buffers: those that are replaced, ``PARAMS`` among them for the weights.

    Raises: DiskFull, JournalFailed, before anything is replaced.
    """

    def __init__(self, state: StoredState, buffers: Buffers) -> None:
        self._buffers = buffers
        self._entry: Entry | None = state.enter(sum(size.nbytes for size in buffers.values()))

    def record(self, working: Working, version: Version, standing: Standing | None) -> Record:
        """Keep the buffers as they are now, and say what they are. Raises: DiskFull, JournalFailed."""
        at = 0
        for name in self._buffers:
            flat = working.params if name == PARAMS else working.state[name]
            if self._entry is not None:
                self._entry.write(at, flat_bytes(flat if flat.is_cpu else flat.to("cpu")))
            at += flat.nbytes
        fields = {
            "version": version,
            "buffers": [[name, size.numel, _name(size.dtype)] for name, size in self._buffers.items()],
            "kept": sorted(working.state),
            "updates": working.updates,
            "started": sorted(working.started),
            "numbers": json.dumps(working.numbers),  # Python's own JSON has infinity, which some begin with
        }
        return Record(REPLACED, fields, self._entry, None if standing is None else standing.to_json())


def replace_again(state: StoredState, fields: Mapping[str, Any], payload: memoryview) -> None:
    """Replace what was replaced."""
    sizes = {name: BufferSize(numel, _dtype(dtype)) for name, numel, dtype in fields["buffers"]}
    working = state.begin({name: size for name, size in sizes.items() if name != PARAMS})
    at = 0
    for name, size in sizes.items():
        flat = working.params if name == PARAMS else working.state[name]
        flat.copy_(_tensor(payload[at : at + size.nbytes], size))
        at += size.nbytes
    working.state = {name: flat for name, flat in working.state.items() if name in fields["kept"]}
    working.updates, working.started = fields["updates"], {_pair(pair) for pair in fields["started"]}
    working.numbers = json.loads(fields["numbers"])
    state.commit(working, Version(*fields["version"]), {})


def _tensor(piece: memoryview, size: BufferSize) -> torch.Tensor:
    return torch.frombuffer(piece, dtype=size.dtype, count=size.numel) if size.numel else torch.empty(0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _pair(pair: Sequence[str]) -> tuple[str, str]:
    group, buffer = pair
    return group, buffer
