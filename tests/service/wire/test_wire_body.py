"""A body that is there whole before anybody asks for it."""

from __future__ import annotations

import pytest

from optimd_service.errors import MalformedSafetensors, TooLarge
from optimd_service.wire.body import Body, Message


async def never() -> Message:
    raise AssertionError("nothing is to be received")


def arrived(content: bytes) -> Body:
    return Body(never, idle_timeout_s=1, arrived=bytearray(content))


async def test_a_body_that_has_arrived_is_read_without_receiving() -> None:
    body, place = arrived(b"abcdef"), bytearray(3)
    assert await body.exactly(3, rule="truncated", what="it") == b"abc"
    await body.pour(iter([memoryview(place)]), 3, run=None, what="it")  # type: ignore[arg-type]  # nothing is to wait
    assert place == b"def"
    assert await arrived(b"abc").everything(3, advice="") == b"abc"


async def test_a_body_that_has_arrived_ends_where_it_ends() -> None:
    with pytest.raises(MalformedSafetensors, match="2 of 3 bytes"):
        await arrived(b"ab").exactly(3, rule="truncated", what="it")
    with pytest.raises(MalformedSafetensors, match="0 of 1 bytes"):
        await arrived(b"").exactly(1, rule="truncated", what="it")
    with pytest.raises(MalformedSafetensors, match="Bytes follow"):
        await arrived(b"ab").end()
    with pytest.raises(TooLarge):
        await arrived(b"abcd").everything(3, advice="")
