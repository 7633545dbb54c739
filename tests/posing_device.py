"""A device that is none: memory of the host, which our code finds to behave as a GPU's does.

What is refused of a GPU's tensors is refused here: to be read as the host's memory, and to be mixed with the host's in
one operation. Copies beside other work are done as late as they may be: those to the device when something is computed
there, those to the host when they are waited for. So a wait that is missing shows in the numbers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from optimd_service.store.accelerator import Accelerator
from optimd_service.types import BufferSize
from optimd_service.wire import staging

DEVICE = torch.device("cuda:0")
MEMORY_BYTES = 2**31
_UNSEEN = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr}
_ACROSS = {torch.Tensor.copy_, torch.Tensor.__setitem__}
_VIEWS = {
    torch.Tensor.__getitem__,
    torch.Tensor.view,
    torch.Tensor.__len__,
    torch.Tensor.numel,
    torch.Tensor.storage_offset,
}

barred: threading.Thread | None = None
"""The thread that must never wait for the device: a server's event loop."""


def refuse_to_wait() -> None:
    assert threading.current_thread() is not barred, "the event loop waits for the device"


class Stream:
    """Copies in their order, each done when somebody waits for it or for a later one."""

    def __init__(self) -> None:
        self._begun: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._count = 0
        self._lock = threading.Lock()

    def begin(self, to: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
        with self._lock:
            self._begun.append((to, source))
            self._count += 1
            return partial(self.wait, self._count)

    def wait(self, number: int | None = None) -> None:
        """Do all copies up to this one; None: all."""
        refuse_to_wait()
        with self._lock, torch._C.DisableTorchFunctionSubclass():
            while self._begun and (number is None or self._count - len(self._begun) < number):
                to, source = self._begun.popleft()
                to.copy_(source)


INWARD, OUTWARD = Stream(), Stream()


class OnDevice(torch.Tensor):
    """A tensor that says that it lies there."""

    device = DEVICE  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _VIEWS or getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, given)
        INWARD.wait()
        if func in _UNSEEN:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.to and args[1] == "cpu":
            return args[0].as_subclass(torch.Tensor).to(*args[1:], **{**given, "copy": True})
        if given.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func not in _ACROSS:
            _refuse_mixed(func, (args, given))
        result = super().__torch_function__(func, types, args, given)
        return args[0] if func is torch.Tensor.copy_ else result


def _refuse_mixed(func: Callable[..., Any], given: Any) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        lies_there = {isinstance(tensor, OnDevice) for tensor in _tensors(given) if tensor.dim()}
    if len(lies_there) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two ({func})")


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, list | tuple | dict):
        for part in given.values() if isinstance(given, dict) else given:
            yield from _tensors(part)


class DelayedCopies:
    """In place of ``StreamCopies``."""

    def __init__(self, device: torch.device, *, outward: bool) -> None:
        assert device == DEVICE
        self._outward = outward

    def buffer(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        refuse_to_wait()
        return torch.full((length,), 7, dtype=dtype)

    def begin(self, to: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
        assert (isinstance(to, OnDevice), isinstance(source, OnDevice)) == (not self._outward, self._outward)
        assert to.shape == source.shape
        return (OUTWARD if self._outward else INWARD).begin(to, source)


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, lying there."""
    return tensor.as_subclass(OnDevice)


def _zeros(_: Accelerator, size: BufferSize) -> torch.Tensor:
    return on_device(torch.zeros(size.numel, dtype=size.dtype))


POSE: tuple[tuple[Any, str, Any], ...] = (
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "mem_get_info", lambda _: (MEMORY_BYTES, MEMORY_BYTES)),
    (torch.cuda, "memory_reserved", lambda _: 0),
    (torch.cuda, "memory_allocated", lambda _: 0),
    (Accelerator, "zeros", _zeros),
    (staging, "StreamCopies", DelayedCopies),
)
"""What takes the CUDA runtime's place: where, which name, and by what."""
