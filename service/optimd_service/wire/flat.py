"""Flat buffers as memory, without a copy."""

from __future__ import annotations

import torch


def flat_bytes(flat: torch.Tensor) -> memoryview:
    """The memory of a contiguous float32 or float64 CPU tensor, writable."""
    # An empty array has no memory that memoryview could cast.
    return flat.numpy().data.cast("B") if flat.numel() else memoryview(bytearray())


def tensor_bytes(flat: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any dtype, also of those that NumPy does not have."""
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
