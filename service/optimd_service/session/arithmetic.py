"""The threads in which everything runs that computes, so that the event loop never does."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import ParamSpec, TypeVar

import torch

from optimd_service.optim.blocks import BLOCK
from optimd_service.session import cores

P = ParamSpec("P")
R = TypeVar("R")

# Up to here one thread is as fast as several: there is one block.
SMALL = BLOCK
# Bodies on their way at once; they wait for clients most of the time. Those beyond are moved by the event loop.
TRANSFERS = 32
# Checkpoints that are written at once.
WRITERS = 4


class Lane:
    """Threads for work of one size: a place for updates to work in, and a way for the event loop to wait for it.

    torch's own parallel loops are not used: each ends in a barrier, which waits for milliseconds whenever another
    process has a core, and an update of many blocks has hundreds of them. A worker here takes block after block.

    Args:
      threads: how many pieces of work run at once.
      workers: how many threads share the blocks of one, that which has the work among them.
    """

    block = BLOCK

    def __init__(self, name: str, *, threads: int, workers: int) -> None:
        self._executor = _executor(f"optimd-{name}", threads)
        self._threads = threads
        self._running = 0
        self._others = workers - 1
        self._workers = _executor(f"optimd-{name}-block", threads * self._others) if workers > 1 else None

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``function(*args)`` in a thread. A cancelled caller still waits: nobody may touch what it writes."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        # Told by hand: asyncio's own bridge between the two kinds of future costs as much as a small update.
        def work() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  it is raised where it is awaited
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, result)

        self._executor.submit(work)
        self._running += 1
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise
        finally:
            self._running -= 1

    @property
    def idle(self) -> bool:
        """Whether a thread is free now."""
        return self._running < self._threads

    def each(self, function: Callable[[int], R], starts: Iterable[int]) -> Iterable[R]:
        """``function`` of each start, in their order, shared among the calling thread and the workers.

        Whatever is raised, nothing runs any more when it is.
        """
        wanted = list(starts)
        if self._workers is None or len(wanted) < 2:
            return map(function, wanted)
        results: list[R] = [None] * len(wanted)  # type: ignore[list-item]  # each is there before it is looked at
        numbers = itertools.count()

        # A thread takes one after the other: handing each over by itself would cost a tenth of the work.
        def work() -> None:
            while (number := next(numbers)) < len(wanted):
                results[number] = function(wanted[number])

        here = cores.current()

        def work_elsewhere() -> None:
            with cores.away_from(here):
                work()

        elsewhere = [self._workers.submit(work_elsewhere) for _ in range(min(self._others, len(wanted) - 1))]
        try:
            with cores.staying_on(here):
                work()
        finally:
            wait(elsewhere)
        for future in elsewhere:
            future.result()
        return results

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        self._executor.shutdown()
        if self._workers:
            self._workers.shutdown()


def _executor(name: str, threads: int) -> ThreadPoolExecutor:
    # torch keeps the number of cores of parallel loops for each thread that starts them.
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))


class Arithmetic:
    """A lane for small work and one for large, so that the small never queues behind the large.

    Args:
      threads: how many pieces of work of each kind run at once.

    Attributes:
      transfers: for bodies that are received or sent; these threads may wait for a client.
      waiting: for small work that waits for a disk or another server, many at once: they share its syncs.
      disk: for what is written beside the steps.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)  # for what is small enough to run where it is called
        self.small = Lane("small", threads=threads, workers=1)
        self.large = Lane("large", threads=threads, workers=threads)
        self.transfers = Lane("transfer", threads=TRANSFERS, workers=1)
        self.waiting = Lane("waiting", threads=TRANSFERS, workers=1)
        self.disk = Lane("disk", threads=WRITERS, workers=1)

    def lane(self, elements: int, *, waits: bool = False) -> Lane:
        """The lane for work on this many elements; ``waits``: for more than a processor, each time."""
        if elements > SMALL:
            return self.large
        return self.waiting if waits else self.small

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        for lane in (self.small, self.large, self.transfers, self.waiting, self.disk):
            lane.close()
