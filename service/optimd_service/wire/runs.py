"""From the order of a payload to the order of a flat buffer, in as few stretches as there can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from optimd_service.types import Span
from optimd_service.wire.dtypes import WIRE_DTYPES
from optimd_service.wire.safetensors import Entry


class Run(NamedTuple):
    """Elements ``start`` to ``stop`` of a flat buffer, which follow one another in the payload too, in one dtype."""

    start: int
    stop: int
    dtype: torch.dtype

    def cut(self, width: int) -> Iterator[Span]:
        """Its pieces, which end at multiples of ``width``."""
        at = self.start
        while at < self.stop:
            stop = min(at - at % width + width, self.stop)
            yield Span(at, stop)
            at = stop


def runs_of(entries: Sequence[Entry], spans: Mapping[str, Span]) -> list[Run]:
    """The stretches that tensors, in payload order, make of the flat buffer that ``spans`` describe."""
    runs: list[Run] = []
    for entry in entries:
        start, stop = spans[entry.name]
        dtype = WIRE_DTYPES[entry.dtype]
        if start == stop:
            continue
        if runs and runs[-1].stop == start and runs[-1].dtype is dtype:
            runs[-1] = runs[-1]._replace(stop=stop)
        else:
            runs.append(Run(start, stop, dtype))
    return runs
