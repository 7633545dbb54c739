"""The units of a layout: the tensors, or their rows, that some rules look at one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from optimd_service.optim.blocks import BLOCK, Each
from optimd_service.types import Layout

T = TypeVar("T")


class Units(NamedTuple):
    """Elements ``start`` to ``stop`` of a flat buffer: one unit behind the other, each of ``width`` elements."""

    start: int
    stop: int
    width: int


def tensors(layout: Layout, length: int) -> Iterator[Units]:
    """Each tensor within the first ``length`` elements as one unit; none for an empty one."""
    for start, stop in layout.spans.values():
        if start < stop <= length:
            yield Units(start, stop, stop - start)


def rows(layout: Layout, length: int, *, vectors: bool) -> Iterator[Units]:
    """The rows of each tensor within the first ``length`` elements: its slices along the first dimension.

    Long tensors come in several parts of whole rows. Empty tensors have no rows.

    Args:
      vectors: tensors of fewer than two dimensions are there too, each as one unit.
    """
    for tensor, whole in ((tensor, layout.spans[tensor.name]) for tensor in layout.tensors):
        matrix = len(tensor.shape) >= 2
        if whole.start < whole.stop <= length and (matrix or vectors):
            width = tensor.numel // tensor.shape[0] if matrix else tensor.numel
            part = max(1, BLOCK // width) * width
            for start in range(whole.start, whole.stop, part):
                yield Units(start, min(start + part, whole.stop), width)


def each_unit(function: Callable[[Units], T], units: Iterable[Units], each: Each) -> list[T]:
    """``function`` of each of the units, in order; a worker is given small ones many at a time."""
    batches = list(_batches(units))
    if len(batches) == 1:
        return [function(unit) for unit in batches[0]]
    results = each(lambda i: [function(unit) for unit in batches[i]], range(len(batches)))
    return [result for batch in results for result in batch]


def _batches(units: Iterable[Units]) -> Iterator[list[Units]]:
    batch, size = list[Units](), 0
    for unit in units:
        batch.append(unit)
        size += unit.stop - unit.start
        if size >= BLOCK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
