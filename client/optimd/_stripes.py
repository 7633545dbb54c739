"""A large body over two connections at once: one thread moves the first half of it, a second one the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from optimd import _cores
from optimd._connection import Connection
from optimd._courier import Courier
from optimd._exchange import Body, Pieces, Reply, Request
from optimd._halved_sink import HalvedSink
from optimd._narrowing import Narrowing
from optimd._sink import TensorSink
from optimd.errors import OptimdError


@dataclass(frozen=True, slots=True)
class Halves:
    """One request as two.

    Attributes:
      abandon: says that the first will not be answered as hoped.
    """

    first: Request
    second: Request
    abandon: Callable[[], None]

    @classmethod
    def of(cls, request: Request, cut_at: int) -> Halves:
        """Cut the body of a request, or else that of its reply."""
        return cls._sent(request, cut_at) if request.body else cls._received(request, cut_at)

    @classmethod
    def _sent(cls, request: Request, cut_at: int) -> Halves:
        total = request.body_bytes
        before, behind = _cut(request.body, cut_at)
        first = {**request.headers, "content-range": f"bytes 0-{cut_at - 1}/{total}"}
        second = {**request.headers, "content-range": f"bytes {cut_at}-{total - 1}/{total}"}
        return cls(
            replace(request, headers=first, body=before),
            replace(request, headers=second, body=behind, sink=None),
            lambda: None,
        )

    @classmethod
    def _received(cls, request: Request, cut_at: int) -> Halves:
        sink = HalvedSink(cast("TensorSink", request.sink), cut_at)
        first = {**request.headers, "range": f"bytes=0-{cut_at - 1}"}
        second = {**request.headers, "range": f"bytes={cut_at}-"}
        return cls(
            replace(request, headers=first, sink=sink.first),
            replace(request, headers=second, sink=sink.second),
            sink.abandon,
        )


def _cut(body: Body, at: int) -> tuple[Body, Body]:
    first: list[memoryview | Pieces] = []
    second: list[memoryview | Pieces] = []
    for part in body:
        if at >= part.nbytes:
            first.append(part)
        elif at <= 0:
            second.append(part)
        else:
            before, behind = (part[:at], part[at:]) if isinstance(part, memoryview) else cast("Narrowing", part).cut(at)
            first.append(before)
            second.append(behind)
        at -= part.nbytes
    return first, second


Outcome: TypeAlias = Reply | OptimdError


class SideBySide:
    """Exchanges requests whose bodies may be cut in two, each half on a connection of its own.

    Args:
      connection: gives an open one.   keep: takes one back.
      exchange: one request on one connection, which is closed where that fails.
    """

    def __init__(
        self,
        connection: Callable[[], Connection],
        exchange: Callable[[Connection, Request], Reply],
        keep: Callable[[Connection], None],
    ) -> None:
        self._connection = connection
        self._exchange = exchange
        self._keep = keep
        self._couriers: deque[Courier] = deque()

    def exchange(self, request: Request, cut_at: int) -> Reply:
        """Exchange both halves.

        Returns: the first half's reply, or that of the half that was refused.

        Raises: what the exchange of either raises.
        """
        halves = Halves.of(request, cut_at)
        here, there = self._pair()
        within = [connection.share() for connection in (here, there)]
        courier = self._couriers.pop() if self._couriers else Courier()
        beside = courier.send(lambda: self._half(there, halves.second, here, halves.abandon))
        try:
            with _cores.staying() if all(within) else nullcontext():
                first = self._half(here, halves.first, there, halves.abandon)
        finally:
            wait([beside])  # its thread reads and writes what belongs to the caller
            self._couriers.append(courier)
        outcomes = first, beside.result()
        if all(map(_is_good, outcomes)):
            self._keep(there)
            self._keep(here)
        else:
            here.close()
            there.close()
        return _answer(*outcomes)

    def close(self) -> None:
        """Let the threads end."""
        while self._couriers:
            self._couriers.pop().close()

    def _pair(self) -> tuple[Connection, Connection]:
        here = self._connection()
        try:
            there = self._connection()
        except BaseException:
            here.close()
            raise
        return here, there

    def _half(self, mine: Connection, request: Request, other: Connection, abandon: Callable[[], None]) -> Outcome:
        """Exchange one half; when nothing can come of the whole any more, the other is broken off."""
        outcome: Outcome | None = None
        try:
            outcome = self._exchange(mine, request)
        except OptimdError as error:
            outcome = error
        finally:
            if not _is_good(outcome):
                abandon()
                other.abort()
        return outcome


def _is_good(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Reply) and outcome.status < 300


def _answer(first: Outcome, second: Outcome) -> Reply:
    """What the whole request is answered with: a refusal tells more than a connection that was broken off for it."""
    if isinstance(first, Reply) and (first.status >= 300 or _is_good(second)):
        return first
    if isinstance(second, Reply) and second.status >= 300:
        return second
    raise next(outcome for outcome in (first, second) if isinstance(outcome, OptimdError))
