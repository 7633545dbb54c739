"""Several steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

Step: TypeAlias = Callable[[], object]


def together(steps: Sequence[Step]) -> Step:
    """One step that takes all of these at once, each in a thread; a single one stays as it is."""
    first, *rest = steps
    if not rest:
        return first
    pool = ThreadPoolExecutor(len(rest))

    def step() -> None:
        others = [pool.submit(other) for other in rest]
        first()
        for other in others:
            other.result()

    return step
