"""An element-wise optimizer whose state is kept in fewer bytes: widened before its step, narrowed after it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from optimd_service.optim.counter_random import Purpose
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.kernel import Sums
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.state_buffer import CompressedBuffer
from optimd_service.optim.update import Norms, Workplace

# Few enough that what is widened is still in a cache when it is narrowed; enough that the calls cost nothing beside it.
SLICE = 2**18

Compressed = Mapping[str, CompressedBuffer]


def new_scratch(buffers: int) -> Tensor:
    """Room for one slice of so many buffers in float32; each thread needs its own, and keeps it."""
    return torch.empty(buffers, SLICE)


def update_compressed_(
    optimizer: Optimizer[Any],
    group: FlatGroup,
    hyper: Hyperparameters,
    compressed: Compressed,
    place: Workplace,
    *,
    seed: int,
    scratch: Callable[[], Tensor],
) -> Norms:
    """Apply one step to a group in place, as ``update_`` does; the group's compressed buffers are written too.

    Args:
      optimizer: one that is ``compressible``.
      group: ``state`` has only the buffers that stay in float32.
      compressed: the others, of the whole group.
      place: its blocks are multiples of 256.
      seed: of stochastic rounding; groups with the same seed round the same way.
      scratch: the calling thread's ``new_scratch``, of at least as many buffers as are compressed.

    Raises: KeyError, before a weight is written, if a buffer that ``hyper`` needs is in neither.
    """
    if optimizer.advance is not None:
        group.numbers.update(optimizer.advance(hyper, group.step, group.numbers))
    length, block = group.params.numel(), place.block

    def step_(at: int) -> Sums:
        part = group.part(at, min(at + block, length))
        return compressed_step_(optimizer, part, hyper, compressed, at, seed, scratch())

    return Norms.of(place.each(step_, range(0, length, block)))


def compressed_step_(
    optimizer: Optimizer[Any],
    part: FlatGroup,
    hyper: Hyperparameters,
    compressed: Compressed,
    start: int,
    seed: int,
    scratch: Tensor,
) -> Sums:
    """Apply one step to a part of a group in place, slice by slice, and sum the squares for its norms.

    Weights and state get the same bits wherever parts begin, and whoever takes them.

    Args:
      part: its ``state`` has the buffers that stay in float32; they are parts as well.
      compressed: the others, of the whole group.
      start: where the part begins in the group; a multiple of 256.
      seed, scratch: as in ``update_compressed_``.

    Raises: ShapeMismatch, before anything is written, if ``start`` is no multiple of 256.
    """
    length = part.params.numel()
    slices = [(at, min(at + SLICE, length)) for at in range(0, length, SLICE)]
    sums = [
        _slice_(optimizer, part.part(at, stop), hyper, compressed, start + at, seed, scratch) for at, stop in slices
    ]
    return Sums(sum(each.change for each in sums), sum(each.size for each in sums))


def _slice_(
    optimizer: Optimizer[Any],
    part: FlatGroup,
    hyper: Hyperparameters,
    compressed: Compressed,
    start: int,
    seed: int,
    scratch: Tensor,
) -> Sums:
    rows = dict(zip(compressed, scratch[:, : part.params.numel()], strict=False))  # scratch may have rows to spare
    for name, buffer in compressed.items():
        buffer.widen_(rows[name], start)
    wide = part._replace(state={**part.state, **rows})
    if part.fresh and optimizer.begin_ is not None:
        optimizer.begin_(wide, hyper)
    sums = optimizer.step_(wide, hyper)
    for name, buffer in compressed.items():
        buffer.narrow_(rows[name], start, Purpose(seed, part.step, number_of(name)))
    return sums


def number_of(name: str) -> int:
    """What tells a buffer's random bits from another's; the same whichever other buffers there are."""
    return zlib.crc32(name.encode())


def widened(buffer: CompressedBuffer, length: int) -> Tensor:
    """A group's buffer of ``length`` elements in float32, as it is exported."""
    out = torch.empty(length)
    buffer.widen_(out, 0)
    return out


def narrowed_(buffer: CompressedBuffer, values: Tensor, seed: int, name: str) -> None:
    """Put a group's buffer, shape [n], float32, as it is imported; what ``widened`` gave is kept bit by bit."""
    buffer.narrow_(values, 0, Purpose(seed, 0, number_of(name)))
