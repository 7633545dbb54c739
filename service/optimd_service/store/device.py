"""State in memory: the host's, or a device's own."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from optimd_service.errors import InsufficientMemory, StateDamaged
from optimd_service.store import accelerator
from optimd_service.store.contract import Entry, Record, Remembered, Working
from optimd_service.store.disk import aligned
from optimd_service.types import Buffers, BufferSize, Durability, Layout, Version

REMEMBERED_KEYS = 10_000
# From here on a buffer begins at a page, so that a disk takes it from where it lies.
ALIGNED_BYTES = 2**20


class Memory(Protocol):
    """Where buffers lie."""

    def holding(self, needed: int) -> AbstractContextManager[None]:
        """Take ``needed`` bytes for what is allocated inside. Raises: InsufficientMemory; nothing is taken then."""

    def give_back(self, taken: int) -> None:
        """Say that so many bytes are used no more."""

    def zeros(self, size: BufferSize) -> torch.Tensor:
        """A new buffer, inside ``holding``."""


class Budget:
    """The host's memory: bytes that all sessions together may hold."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._lock = threading.Lock()

    def take(self, needed: int) -> None:
        """Raises: InsufficientMemory."""
        with self._lock:
            available = self._limit - self._used
            if needed > available:
                raise InsufficientMemory(
                    f"This needs {needed} bytes and {available} are free; delete a session or raise "
                    "OPTIMD_MEMORY_LIMIT_BYTES.",
                    needed_bytes=needed,
                    available_bytes=available,
                )
            self._used += needed

    def give_back(self, taken: int) -> None:
        with self._lock:
            self._used -= taken

    @contextmanager
    def holding(self, needed: int) -> Iterator[None]:
        """Take ``needed`` bytes for what is allocated inside. Raises: InsufficientMemory; nothing is taken then."""
        self.take(needed)
        try:
            yield
        except (RuntimeError, OSError):  # torch's allocator, or the system's: there is less than the budget allows
            self.give_back(needed)
            raise InsufficientMemory(
                f"This needs {needed} bytes, which the machine does not have; lower OPTIMD_MEMORY_LIMIT_BYTES.",
                needed_bytes=needed,
                available_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"),
            ) from None

    def zeros(self, size: BufferSize) -> torch.Tensor:
        if size.nbytes < ALIGNED_BYTES:
            return torch.zeros(size.numel, dtype=size.dtype)
        return torch.frombuffer(aligned(size.nbytes), dtype=size.dtype)


@dataclass(eq=False)
class _Weights:
    flat: torch.Tensor
    version: Version
    readers: int = 0


class DeviceSnapshot:
    """A reader's hold on one version of the weights."""

    def __init__(self, state: DeviceState, weights: _Weights) -> None:
        self.params = weights.flat
        self.version = weights.version
        self._state: DeviceState | None = state
        self._weights = weights

    def release(self) -> None:
        state, self._state = self._state, None
        if state:
            state._let_go(self._weights)  # noqa: SLF001  one mechanism in two classes of one file


@dataclass(eq=False)
class DeviceState:
    """One session's buffers, written in place.

    Weights that somebody still reads are not written: the update goes to a copy, and the readers keep theirs.
    """

    layout: Layout
    memory: Memory
    grads: torch.Tensor
    _weights: _Weights
    _state: dict[str, torch.Tensor]
    _updates: int = 0
    _started: set[tuple[str, str]] = field(default_factory=set)
    _numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    _keys: OrderedDict[str, Remembered] = field(default_factory=OrderedDict)
    _spare: torch.Tensor | None = None
    _damaged: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> Version:
        return self._weights.version

    @property
    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        return self._numbers

    @property
    def durable_step(self) -> int:
        return 0  # nothing here outlives the process

    def durable_with(self, step: int) -> int:  # noqa: ARG002  the contract's
        return self.durable_step

    @property
    def records(self) -> bool:
        return False

    def enter(self, nbytes: int) -> Entry | None:  # noqa: ARG002  the contract's
        return None

    @property
    def held_bytes(self) -> int:
        """Weights, gradient buffer and state; a copy made for slow readers is not counted."""
        return self._weights.flat.nbytes + self.grads.nbytes + sum(buffer.nbytes for buffer in self._state.values())

    def snapshot(self) -> DeviceSnapshot:
        self._check()
        with self._lock:
            self._weights.readers += 1
            return DeviceSnapshot(self, self._weights)

    def _let_go(self, weights: _Weights) -> None:
        with self._lock:
            weights.readers -= 1
            if not weights.readers and weights is not self._weights:
                self._spare = weights.flat

    def recall(self, key: str) -> Remembered | None:
        return self._keys.get(key)

    def read_state(self) -> Working:
        self._check()
        return Working(self._weights.flat, self._state, self._updates, self._started, self._numbers)

    @property
    def remembered(self) -> Mapping[str, Remembered]:
        """By key, the oldest first; to be read only."""
        return self._keys

    @property
    def damaged(self) -> bool:
        """Whether an update failed half-way, and nothing was put in the place of what it left."""
        return self._damaged

    def renew(self, buffers: Buffers) -> Working:
        """Hand out the buffers to be written anew: these, and no others. What they hold means nothing.

        Raises: InsufficientMemory.
        """
        working = self._begin(buffers)
        self._damaged = False
        return Working(working.params, {name: working.state[name] for name in buffers}, 0, set(), {})

    def adopt(self, working: Working, version: Version, remembered: Mapping[str, Remembered]) -> None:
        """Publish what ``renew`` handed out, and remember these receipts alone."""
        self._keys.clear()
        self.commit(working, version, remembered)

    def begin(self, buffers: Buffers) -> Working:
        self._check()
        return self._begin(buffers)

    def _begin(self, buffers: Buffers) -> Working:
        state = dict(self._state)
        for name, size in buffers.items():
            if name not in state or not _is_of(state[name], size):
                with self._budget_for(state, size):
                    state[name] = self.memory.zeros(size)
        numbers = {owner: dict(held) for owner, held in self._numbers.items()}
        return Working(self._writable_params(), state, self._updates, set(self._started), numbers)

    @contextmanager
    def _budget_for(self, state: Mapping[str, torch.Tensor], size: BufferSize) -> Iterator[None]:
        """Take room for one more buffer; where there is none, give back what ``state`` was given before."""
        try:
            with self.memory.holding(size.nbytes):
                yield
        except InsufficientMemory:
            self._give_back(state, beyond=self._state)
            raise

    def _give_back(self, state: Mapping[str, torch.Tensor], *, beyond: Mapping[str, torch.Tensor]) -> None:
        """Give back the memory of buffers in ``state`` that are not ``beyond`` as well."""
        kept = {id(buffer) for buffer in beyond.values()}
        self.memory.give_back(sum(buffer.nbytes for buffer in state.values() if id(buffer) not in kept))

    def _writable_params(self) -> torch.Tensor:
        with self._lock:
            current = self._weights
            if not current.readers:
                return current.flat
            copy, self._spare = self._spare, None
        copy = torch.empty_like(current.flat) if copy is None else copy
        return copy.copy_(current.flat)

    def commit(
        self,
        working: Working,
        version: Version,
        remember: Mapping[str, Remembered],
        record: Record | None = None,  # noqa: ARG002  nothing is kept here
    ) -> None:
        with self._lock:
            if working.params is self._weights.flat:
                self._weights.version = version
            else:
                self._weights = _Weights(working.params, version)
            self._give_back(self._state, beyond=working.state)
            self._state, self._updates, self._started = working.state, working.updates, working.started
            self._numbers = working.numbers
        self._keys.update(remember)
        while len(self._keys) > REMEMBERED_KEYS:
            self._keys.popitem(last=False)

    def abandon(self, working: Working, *, written: bool) -> None:
        self._damaged |= written
        self._give_back(working.state, beyond=self._state)
        if working.params is not self._weights.flat:
            self._spare = working.params

    def _check(self) -> None:
        if self._damaged:
            raise StateDamaged("An update of this session failed half-way; create a new session from your last pull.")


def _is_of(buffer: torch.Tensor, size: BufferSize) -> bool:
    return (buffer.numel(), buffer.dtype) == (size.numel, size.dtype)


def _moved(flat: torch.Tensor, memory: Memory, device: str) -> torch.Tensor:
    """A buffer of the host's, in the memory of a device."""
    return flat if device == "cpu" else memory.zeros(BufferSize(flat.numel(), flat.dtype)).copy_(flat)


class DeviceStore:
    """Sessions in host memory, within one budget, and in the memory of devices, as far as that goes.

    Args:
      limit_bytes: what weights, gradients and state of all sessions in host memory may hold together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._budget = Budget(limit_bytes)
        self._states: dict[str, DeviceState] = {}

    def create(
        self,
        session_id: str,
        layout: Layout,
        buffers: Buffers,
        grads: BufferSize,
        device: str = "cpu",
        durability: Durability = "memory",  # noqa: ARG002  nothing here outlives the process
    ) -> DeviceState:
        memory: Memory = self._budget if device == "cpu" else accelerator.find(device)
        weights = BufferSize(layout.numel, layout.dtype)
        with memory.holding(sum(size.nbytes for size in (weights, grads, *buffers.values()))):
            state = DeviceState(
                layout,
                memory,
                memory.zeros(grads),
                _Weights(memory.zeros(weights), Version(0, 0)),
                {name: memory.zeros(size) for name, size in buffers.items()},
            )
        self._states[session_id] = state
        return state

    def adopt(
        self,
        session_id: str,
        layout: Layout,
        grads: BufferSize,
        device: str,
        working: Working,
        version: Version,
        remembered: Mapping[str, Remembered],
    ) -> DeviceState:
        """Take in a session whose buffers, in the host's memory, nobody else will use.

        Raises: InsufficientMemory; InvalidField for a device that is not there.
        """
        memory: Memory = self._budget if device == "cpu" else accelerator.find(device)
        held = grads.nbytes + working.params.nbytes + sum(flat.nbytes for flat in working.state.values())
        with memory.holding(held):
            state = {name: _moved(flat, memory, device) for name, flat in working.state.items()}
            weights = _Weights(_moved(working.params, memory, device), version)
            taken = DeviceState(layout, memory, memory.zeros(grads), weights, state)
        taken.adopt(replace(working, params=weights.flat, state=state), version, remembered)
        self._states[session_id] = taken
        return taken

    @property
    def spare(self) -> Budget:
        """Where memory for a while is taken from."""
        return self._budget

    def drop(self, session_id: str) -> None:
        state = self._states.pop(session_id, None)
        if state:
            state.memory.give_back(state.held_bytes)
