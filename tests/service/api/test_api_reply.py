"""What a reply hands to the transport, which may still hold some of it when the weights change again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optimd_service.api.reply import EncodedResponse
from optimd_service.wire.body import Disconnected
from optimd_service.wire.encode import Encoded

# asyncio's and uvloop's high-water mark: up to here a transport takes more without asking to be waited for.
HIGH_WATER = 64 * 1024
MIB = 2**20


class Transport:
    """Keeps what it is given as it is given, as a transport does whose client reads slowly."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.length = 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.length = int(dict(message["headers"])[b"content-length"])
        else:
            self.kept.append(message["body"])


def reply(payload: memoryview, released: list[str], idle_timeout_s: float = 5) -> EncodedResponse:
    encoded = Encoded(b"head", payload)
    return EncodedResponse(
        encoded,
        media_type="application/octet-stream",
        headers={},
        idle_timeout_s=idle_timeout_s,
        release=lambda: released.append("released"),
    )


@pytest.mark.parametrize(
    "length", [0, 1, HIGH_WATER - 4, HIGH_WATER, 100_000, 2 * MIB - 1, 2 * MIB, 2 * MIB + 60_000, 5 * MIB + 3]
)
async def test_what_a_transport_may_still_hold_at_the_end_does_not_change_with_the_weights(length: int) -> None:
    weights = bytearray(b"a" * length)
    transport, released = Transport(), list[str]()
    await reply(memoryview(weights), released)({"type": "http"}, None, transport.send)  # type: ignore[arg-type]
    assert released == ["released"]
    weights[:] = b"b" * length  # the next step
    body = b"".join(transport.kept)
    assert len(body) == transport.length == 4 + length
    unsent = body[4:][-HIGH_WATER:]
    assert unsent == b"a" * len(unsent)


async def test_the_bulk_of_a_large_body_is_not_copied() -> None:
    weights = bytearray(20 * MIB)
    transport = Transport()
    await reply(memoryview(weights), [])({"type": "http"}, None, transport.send)  # type: ignore[arg-type]
    copied = sum(len(piece) for piece in transport.kept if not isinstance(piece, memoryview))
    assert copied < MIB / 4


async def test_weights_are_released_when_nobody_reads_them() -> None:
    released = list[str]()

    async def never(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    with pytest.raises(Disconnected):
        await reply(memoryview(bytes(MIB)), released, idle_timeout_s=0.01)({"type": "http"}, None, never)  # type: ignore[arg-type]
    assert released == ["released"]
