"""What stands between clients and a server, and breaks, delays and loses what goes through it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

PIECE = 2**16


@dataclass
class Fate:
    """What becomes of one connection.

    Attributes:
      breaks: in which direction it breaks, if it does; `back` is from the server.
      after: bytes in that direction that still go through.
      delay_s: how long each piece waits.
    """

    breaks: Literal["forth", "back", "never"] = "never"
    after: int = 0
    delay_s: float = 0.0


@dataclass
class Chance:
    """Fates by chance.

    Args:
      seed: of the dice.   broken: share of connections that break.   mean: bytes until then, on average.
      delayed: share of connections whose pieces wait for some milliseconds.
    """

    seed: int
    broken: float = 0.5
    mean: float = 20_000
    delayed: float = 0.1
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(f"proxy {self.seed}")  # noqa: S311  chance here is to be repeatable, not secret

    def __call__(self) -> Fate:
        dice = self._dice
        direction: Literal["forth", "back"] = dice.choice(("forth", "back"))
        delay_s = dice.random() * 0.005 if dice.random() < self.delayed else 0.0
        if dice.random() >= self.broken:
            return Fate(delay_s=delay_s)
        return Fate(direction, int(dice.expovariate(1 / self.mean)), delay_s)


class FaultyProxy:
    """Listens on a port of its own, on a thread of its own, while the context lasts.

    Args:
      target: URL of the server; asked for at every connection, for servers are started again elsewhere.
      chance: gives each connection its fate; without it none has one, but those in ``fates``.

    Attributes:
      fates: of the connections that come next.   broken: how many it has broken.
    """

    def __init__(self, target: Callable[[], str], chance: Callable[[], Fate] = Fate) -> None:
        self._target = target
        self._chance = chance
        self.fates: deque[Fate] = deque()
        self.broken = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy")
        self._thread.start()
        listening = asyncio.start_server(self._connected, "127.0.0.1", 0, limit=PIECE)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        fate = self.fates.popleft() if self.fates else self._chance()
        at = urlsplit(self._target())
        try:
            server, to_server = await asyncio.open_connection(at.hostname, at.port, limit=PIECE)
        except OSError:
            to_client.transport.abort()
            return
        pumps = {
            asyncio.ensure_future(self._pump(client, to_server, fate, "forth")),
            asyncio.ensure_future(self._pump(server, to_client, fate, "back")),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (to_client, to_server):
                writer.close()  # behind what was written

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fate: Fate, direction: str) -> None:
        """Forward until one end is gone, or the connection has met its fate."""
        left = fate.after if fate.breaks == direction else None
        with suppress(OSError):
            while data := await source.read(PIECE):
                if fate.delay_s:
                    await asyncio.sleep(fate.delay_s)
                breaks = left is not None and len(data) > left
                sink.write(data[:left] if breaks else data)
                await sink.drain()
                if breaks:
                    self.broken += 1
                    return
                left = None if left is None else left - len(data)
