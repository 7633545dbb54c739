from __future__ import annotations

import torch

from optimd_service.session.covered import Covered
from optimd_service.types import Span

LENGTH = 12


def test_it_holds_what_was_added_and_not_removed_since() -> None:
    chosen = torch.randint(LENGTH + 1, (300, 8, 2), generator=torch.Generator().manual_seed(0)).sort().values
    for calls in chosen.tolist():
        covered, there = Covered(), set[int]()
        for number, (start, stop) in enumerate(calls):
            if number % 3:
                covered.add(Span(start, stop))
                there.update(range(start, stop))
            else:
                covered.remove(Span(start, stop))
                there.difference_update(range(start, stop))
            for first in range(LENGTH):
                for last in range(first + 1, LENGTH + 1):
                    assert covered.holds(Span(first, last)) == there.issuperset(range(first, last))


def test_what_comes_piece_by_piece_is_remembered_as_one() -> None:
    covered = Covered()
    for start in (6, 0, 3, 9):
        covered.add(Span(start, start + 3))
    assert covered._stretches == [Span(0, 12)]
