"""Gradients in buckets: each is given away as soon as the backward pass has filled it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import Tensor

from optimd._torch_part import Part

BUCKET_BYTES = 12 * 2**20
"""From here on a bucket is full: large enough that a round trip does not count, small enough to start early."""
_PATIENCE = 3


def buckets(sizes: Mapping[str, int], full_bytes: int) -> list[tuple[str, ...]]:
    """Cut a layout into runs that are full, from its end, since gradients appear from there; the rest is the last.

    No bucket waits for a tensor that it does not need: a layer's bias goes with its weight, which appears beside it,
    and not with the weight of the layer above.

    Args:
      sizes: tensor name → bytes, in layout order.
      full_bytes: what a bucket holds at least.

    Returns: the buckets in the order in which they are expected, the names of each in layout order.
    """
    found: list[list[str]] = []
    held = full_bytes
    for name in reversed(list(sizes)):
        if held >= full_bytes:
            found.append([])
            held = 0
        found[-1].insert(0, name)
        held += sizes[name]
    return [tuple(bucket) for bucket in found]


class GradientBuckets:
    """Watches parameters' gradients appear.

    The bucket that is filled last is not given away: what completes the push takes it along.

    Args:
      params: tensor name → parameter.
      sizes: as for `buckets`.
      send: takes a part to be sent, and says when it has arrived; None when it cannot be sent now.
      check: called with the name of each parameter whose gradient appears; what it raises ends the backward pass.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        send: Callable[[Part], Future[None] | None],
        check: Callable[[str], None],
    ) -> None:
        self._params = params
        self._send = send
        self._check = check
        self._buckets = buckets(sizes, BUCKET_BYTES)
        self._of = {name: i for i, bucket in enumerate(self._buckets) for name in bucket}
        self._lock = Lock()
        self._parts: dict[int, Part] = {}
        self._paused = self._given_up = False
        self._steps_in_vain = 0
        self._begin_pass()
        watched = params if len(self._buckets) > 1 else {}
        handles = [_watch(param, name, self) for name, param in watched.items() if param.requires_grad]
        self.close = weakref.finalize(self, lambda: [handle.remove() for handle in handles])

    def __len__(self) -> int:
        return len(self._buckets)

    def appeared(self, name: str) -> None:
        """A backward pass has added to this parameter's gradient; several devices' threads may say so at once."""
        self._check(name)
        grad = self._params[name].grad
        if grad is not None and grad.is_sparse:
            self._given_up = True  # rows are pushed with everything else
        if self._paused or self._given_up or grad is None:
            return
        with self._lock:
            part = self._filled(name)
            if part is not None:
                part.delivery = self._send(part)
                if part.delivery is not None:
                    self._parts[self._of[name]] = part

    def _filled(self, name: str) -> Part | None:
        """The bucket that this gradient has filled, unless it is the last one."""
        index = self._of[name]
        if name not in self._awaited[index]:
            self._begin_pass()
        if index in self._parts:
            self._parts.pop(index).cancel()
        awaited = self._awaited[index]
        awaited.discard(name)
        if awaited or not any(self._awaited):
            return None
        return Part.of({name: self._params[name] for name in self._buckets[index]})

    def _begin_pass(self) -> None:
        self._awaited = [set(bucket) for bucket in self._buckets]

    def gather(self) -> list[Part]:
        """The parts on their way or there whose gradients are still what was sent; the next pass begins anew."""
        with self._lock:
            parts = [part for part in self._parts.values() if not part.cancel()]
            self._parts = {}
            self._begin_pass()
        good = [part for part in parts if not part.changed]
        if parts:
            self._learn(in_vain=not good)
        return good

    def _learn(self, *, in_vain: bool) -> None:
        self._steps_in_vain = self._steps_in_vain + 1 if in_vain else 0
        if self._steps_in_vain == _PATIENCE:
            self._given_up = True
            warnings.warn(
                "gradients are changed between backward() and step(), so that what was sent during the backward pass "
                "was sent in vain: step() sends them from now on. Clipping and loss scaling can be the server's: "
                "clip={'max_norm': …}, loss_scale={}",
                stacklevel=2,
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the context lasts, gradients are being accumulated: none is given away."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


def _watch(param: Tensor, name: str, buckets: GradientBuckets) -> Any:
    held = weakref.ref(buckets)

    def appeared(_: Tensor) -> None:
        watching = held()
        if watching is not None:
            watching.appeared(name)

    return param.register_post_accumulate_grad_hook(appeared)  # type: ignore[no-untyped-call] # of torch
