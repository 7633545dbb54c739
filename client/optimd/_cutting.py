"""Where a large body is cut, so that two connections carry it at the same time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from optimd._exchange import Body
from optimd._safetensors import wire_dtype

LARGE_BYTES = 32 * 2**20
"""Of tensors, from which on a second connection gains more than it costs."""
_GRID = 2**23
"""The server takes segments that end at multiples of this behind the header."""
_ALIGNMENT = 8
_ENTRY_BYTES = 200


def cut_of_push(sent: Mapping[str, Any], body: Body) -> int | None:
    """The byte at which the body that holds ``sent`` is cut; None where it is to travel whole.

    Only tensors of one dtype, which are the server's gradient buffer in its order, come in segments.
    """
    behind = body[0].nbytes
    payload_bytes = sum(part.nbytes for part in body) - behind
    if payload_bytes < LARGE_BYTES:
        return None
    dtypes = {wire_dtype(tensor) for tensor in sent.values()}
    if len(dtypes) > 1 or None in dtypes:
        return None
    return behind + max(1, round(payload_bytes / 2 / _GRID)) * _GRID


def cut_of_pull(names: Collection[str], payload_bytes: int) -> int | None:
    """The byte at which a reply that holds these tensors is cut; None where it is to travel whole."""
    header_bytes = sum(map(len, names)) + _ENTRY_BYTES * len(names)
    if payload_bytes < LARGE_BYTES or header_bytes > payload_bytes // 4:
        return None
    return payload_bytes // 2 // _ALIGNMENT * _ALIGNMENT
