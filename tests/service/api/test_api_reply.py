"""What a reply hands to a transport that is not the server's own, and may hold it when the weights change again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from optimd_service.api.reply import EncodedResponse, Sending
from optimd_service.wire.encode import Encoded
from optimd_service.wire.payload import Payload


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


def reply(
    weights: torch.Tensor, released: list[str], idle_timeout_s: float = 5, dtype: torch.dtype = torch.uint8
) -> EncodedResponse:
    async def here(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    return EncodedResponse(
        Encoded(b"head", Payload([weights], dtype)),
        media_type="application/octet-stream",
        headers={},
        sending=Sending(here, None, idle_timeout_s),
        release=lambda: released.append("released"),
    )


@pytest.mark.parametrize("length", [0, 1, 65_532, 65_536, 100_000, 2**21 - 1, 2**21, 5 * 2**20 + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_what_a_transport_may_still_hold_does_not_change_with_the_weights(
    length: int, dtype: torch.dtype
) -> None:
    weights = torch.full((length,), 1.5)
    transport, released = Transport(), list[str]()
    await reply(weights, released, dtype=dtype)({"type": "http"}, None, transport.send)  # type: ignore[arg-type]
    assert released == ["released"]
    weights.fill_(2.5)  # the next step
    body = b"".join(transport.kept)
    assert len(body) == transport.length == 4 + length * dtype.itemsize
    sent = torch.frombuffer(bytearray(body[4:] or bytes(4)), dtype=dtype)[:length]
    assert torch.equal(sent, torch.full((length,), 1.5, dtype=dtype))


@pytest.mark.parametrize("length", [10, 100_000])
async def test_weights_that_are_still_being_written_are_not_waited_for_on_the_event_loop(length: int) -> None:
    waited_in = []

    async def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    payload = Payload([torch.zeros(length)], ready=lambda _: waited_in.append(threading.current_thread()))
    response = EncodedResponse(
        Encoded(b"head", payload),
        media_type="application/octet-stream",
        headers={},
        sending=Sending(elsewhere, None, 5),
    )
    await response({"type": "http"}, None, Transport().send)  # type: ignore[arg-type]
    assert waited_in
    assert threading.current_thread() not in waited_in


async def test_weights_are_released_when_nobody_reads_them() -> None:
    released = list[str]()

    async def never(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    weights = torch.zeros(2**20, dtype=torch.uint8)
    await reply(weights, released, idle_timeout_s=0.01)({"type": "http"}, None, never)  # type: ignore[arg-type]
    assert released == ["released"]
