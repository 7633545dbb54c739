"""Flat buffers as memory, without a copy."""

from __future__ import annotations

import torch


def flat_bytes(flat: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of one dimension, writable. Raises: TypeError for one that no CPU sees."""
    if not flat.numel():  # an empty array has no memory that memoryview could cast
        return memoryview(bytearray())
    # NumPy has no bfloat16. The others are cast by memoryview: torch's view takes longer, and small steps come here.
    return flat.view(torch.uint8).numpy().data if flat.dtype is torch.bfloat16 else flat.numpy().data.cast("B")
