"""The memory of a device that computes by itself, such as a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from optimd_service.errors import InsufficientMemory, InvalidField
from optimd_service.types import BufferSize

# Left free for what torch's kernels need themselves.
RESERVE_BYTES = 2**28


class Accelerator:
    """One device. It knows itself how much of its memory is free: others may use it too.

    Args:
      device: with its number.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextmanager
    def holding(self, needed: int) -> Iterator[None]:
        """Make sure of ``needed`` bytes for what is allocated inside. Raises: InsufficientMemory."""
        available = self.free_bytes()
        refusal = InsufficientMemory(
            f"This needs {needed} bytes and {available} are free on {self._device}; delete a session there, or create "
            "this one on another device.",
            needed_bytes=needed,
            available_bytes=available,
        )
        if needed > available:
            raise refusal
        try:
            yield
        except torch.OutOfMemoryError:  # somebody else has been faster
            raise refusal from None

    def give_back(self, taken: int) -> None:
        """Nothing is kept account of: a buffer that nobody uses any more is free."""

    def free_bytes(self) -> int:
        """What sessions may take now, and what torch holds of the device without using it."""
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(0, torch.cuda.mem_get_info(self._device)[0] + unused - RESERVE_BYTES)

    def zeros(self, size: BufferSize) -> torch.Tensor:
        """A buffer there."""
        return torch.zeros(size.numel, dtype=size.dtype, device=self._device)


def find(name: str) -> Accelerator:
    """The device of this name, ``cuda`` or ``cuda:1``. Raises: InvalidField, where there is none."""
    wanted, count = torch.device(name), torch.cuda.device_count()
    if not torch.cuda.is_available() or (wanted.index or 0) >= count:
        found = ", ".join(f"cuda:{number}" for number in range(count)) or "none (is torch's CUDA build installed?)"
        raise InvalidField(
            f"This server's torch sees no {name}; it sees {found}. Create the session with storage.device cpu, or on a "
            "server that has one.",
            field="storage.device",
        )
    return Accelerator(torch.device(wanted.type, wanted.index or 0))
