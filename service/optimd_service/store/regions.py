"""Flat buffers as stretches of one file: which memory a block of the file comes from or goes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from optimd_service.store.disk import PAGE, aligned


class Region(NamedTuple):
    """One buffer in a file.

    Attributes:
      start: where it begins, counted from the first region.
      flat: shape [bytes], uint8; on any device.
    """

    name: str
    start: int
    flat: torch.Tensor

    @property
    def stop(self) -> int:
        return self.start + self.flat.numel()


def memory(regions: Sequence[Region], start: int, stop: int) -> memoryview | None:
    """The bytes from ``start`` to ``stop`` where they lie, if the disk can take them from there: None if not."""
    for region in regions:
        if region.start <= start and stop <= region.stop and region.flat.is_cpu:
            part = region.flat[start - region.start : stop - region.start]
            return None if part.data_ptr() % PAGE else bytes_of(part)
    return None


def bytes_of(flat: torch.Tensor) -> memoryview:
    """The memory of a tensor of the host, shape [bytes], uint8; no copy."""
    return flat.numpy().data


def gather_(block: torch.Tensor, regions: Sequence[Region], start: int) -> None:
    """Fill ``block``, shape [bytes], with what lies from ``start`` on."""
    for piece, part in _overlaps(block, regions, start):
        piece.copy_(part)


def scatter_(regions: Sequence[Region], block: torch.Tensor, start: int) -> None:
    """Write ``block``, shape [bytes], to where it lies from ``start`` on."""
    for piece, part in _overlaps(block, regions, start):
        part.copy_(piece)


def _overlaps(
    block: torch.Tensor, regions: Sequence[Region], start: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    stop = start + block.numel()
    for region in regions:
        begin, end = max(start, region.start), min(stop, region.stop)
        if begin < end:
            yield block[begin - start : end - start], region.flat[begin - region.start : end - region.start]


def new_block(nbytes: int) -> torch.Tensor:
    """Memory of the host that the disk can take and give as it lies: shape [nbytes], uint8, at zero."""
    return torch.frombuffer(aligned(max(nbytes, 1)), dtype=torch.uint8)[:nbytes]
