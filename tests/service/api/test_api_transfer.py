"""Moving a body over a request's own socket, where the other side does not move."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optimd_service.api.transfer import Transfer
from optimd_service.wire.disconnected import Disconnected


class Stuck:
    """A connection whose client never reads what was written before."""

    abandoned = False

    async def flushed(self) -> None:
        await asyncio.Event().wait()

    def abandon(self) -> None:
        self.abandoned = True


async def test_a_client_that_does_not_read_what_came_before_is_given_up() -> None:
    stuck: Any = Stuck()
    threads: Any = None
    with pytest.raises(Disconnected):
        await Transfer(stuck, threads, idle_timeout_s=0.01).send(iter([]), 1)
    assert stuck.abandoned
