"""What leaves in one send."""

from __future__ import annotations

import pytest

from optimd._connection import _pieces

KIB = 2**10


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(bytes([number % 256]) * size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (100,) * 5000, (5, 300 * KIB, 7), (3000 * KIB, 1, 1, 3000 * KIB)])
def test_the_pieces_are_the_buffers_in_their_order(sizes: tuple[int, ...]) -> None:
    whole = buffers(*sizes)
    assert b"".join(_pieces(whole)) == b"".join(whole)


def test_many_small_buffers_leave_in_few_pieces() -> None:
    assert len(list(_pieces(buffers(*[200] * 2000)))) <= 400_000 / (64 * KIB) + 1


def test_a_large_buffer_is_not_copied() -> None:
    (large,) = buffers(3000 * KIB)
    first, second = _pieces([large])
    assert isinstance(first, memoryview)
    assert first.obj is second.obj is large.obj
