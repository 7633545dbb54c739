"""Between a socket and the memory of a device: a few buffers of the host, one copied while another travels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from typing import Protocol

import torch

# Of one buffer, whatever its dtype: enough that a copy costs nothing beside its bytes.
STAGED = 2**20
BUFFERS = 3

Wait = Callable[[], None]
"""Waits until a copy has ended, and all that were begun before it."""


class Copies(Protocol):
    """Copies between a device and the host, each begun here and done beside whatever goes on."""

    def buffer(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host, shape [length], that is copied from and to beside other work."""

    def begin(self, to: torch.Tensor, source: torch.Tensor) -> Wait:
        """Begin to copy ``source`` into ``to``, of the same shape.

        The host's may not be touched until the copy has ended. Whatever else is asked of the device sees what was begun
        to be copied there.
        """


class StreamCopies:
    """Copies on a stream of the device's own, so that they do not wait for its arithmetic.

    Args:
      device: of the memory beside the host's.
      outward: from it; each direction has a stream.
    """

    def __init__(self, device: torch.device, *, outward: bool) -> None:
        self._device = device
        self._outward = outward
        self._stream = _stream(device, outward)
        # What was asked of the device before may still write to what is copied from, or read what is copied to.
        self._stream.wait_stream(torch.cuda.default_stream(device))

    def buffer(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(length, dtype=dtype, pin_memory=True)

    def begin(self, to: torch.Tensor, source: torch.Tensor) -> Wait:
        with torch.cuda.stream(self._stream):
            if source.dtype is not to.dtype:  # on the device: torch would convert on the host, and wait
                source = source.to(self._device, non_blocking=True).to(to.dtype)
            to.copy_(source, non_blocking=True)
            ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's own
            ended.record(self._stream)
        if not self._outward:  # what is asked of the device from now on sees the copy, if nobody waits for it either
            torch.cuda.default_stream(self._device).wait_event(ended)
        return ended.synchronize


@cache
def _stream(device: torch.device, outward: bool) -> torch.cuda.Stream:  # noqa: ARG001  one for each direction
    # One for all bodies: what is left of one that has broken off is written before the next one.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own


class Ring:
    """A few buffers in turn; one comes again when the copy that it was for has ended."""

    def __init__(self, copies: Copies, length: int, dtype: torch.dtype) -> None:
        self._copies = copies
        self._buffers = cycle([copies.buffer(min(length, STAGED), dtype) for _ in range(BUFFERS)])
        self._under_way: deque[Wait] = deque()

    def next(self) -> torch.Tensor:
        """A buffer that nobody uses."""
        if len(self._under_way) == BUFFERS:
            self._under_way.popleft()()
        return next(self._buffers)

    def begin(self, to: torch.Tensor, source: torch.Tensor) -> Wait:
        """Begin the one copy that the newest buffer is for."""
        self._under_way.append(self._copies.begin(to, source))
        return self._under_way[-1]


def fetched(
    stretch: torch.Tensor, dtype: torch.dtype, ready: Callable[[int], None] | None = None
) -> Iterator[torch.Tensor]:
    """The elements of a stretch of a device's memory in pieces, in ``dtype``, in memory of the host.

    A piece may change when the next is asked for. The one behind it is being copied meanwhile.

    Args:
      ready: waits until the stretch can be read up to an element.
    """
    ring = Ring(StreamCopies(stretch.device, outward=True), len(stretch), dtype)
    ahead: deque[tuple[torch.Tensor, Wait]] = deque()
    for start in range(0, len(stretch), STAGED):
        part = stretch[start : start + STAGED]
        if ready is not None:
            ready(start + len(part))
        piece = ring.next()[: len(part)]
        ahead.append((piece, ring.begin(piece, part)))
        if len(ahead) > 1:
            yield _ended(*ahead.popleft())
    for copied in ahead:
        yield _ended(*copied)


def _ended(piece: torch.Tensor, wait: Wait) -> torch.Tensor:
    wait()
    return piece
