"""A safetensors writer that does as it is told, right or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def raw_file(header: Any, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """The file of this header (bytes as they are, anything else as JSON), claiming ``length`` where it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensor_file(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A correct file of these tensors, in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    payload = b""
    for name, tensor in tensors.items():
        piece = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        header[name] = entry(list(tensor.shape), len(payload), len(payload) + len(piece), DTYPES[tensor.dtype])
        payload += piece
    return raw_file(header, payload)
