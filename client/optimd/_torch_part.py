"""Some of a push's gradients, sent ahead, and whether they are still what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optimd._torch_weights import Gradient, to_send

_LOOKS = 64


@dataclass(eq=False)
class Part:
    """Gradients as they were at one moment.

    A later change shows in their place, in autograd's version counter or in a sample of their numbers, which no scaling
    leaves as it is: GradScaler writes past the counter. What escapes is an edit of a few numbers through `.data`.

    Attributes:
      params: tensor name → parameter.   grads: name → its gradient at that moment.
      ready: for gradients on a GPU, what their computation ends with.
      delivery: done when they have arrived; None while nobody has been asked to send them.
    """

    params: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    ready: torch.cuda.Event | None
    delivery: Future[None] | None = None

    @classmethod
    def of(cls, params: Mapping[str, Tensor]) -> Part:
        grads = {name: param.grad for name, param in params.items() if param.grad is not None}
        on_gpu = [grad for grad in grads.values() if grad.is_cuda]
        return cls(params, grads, torch.cuda.current_stream(on_gpu[0].device).record_event() if on_gpu else None)

    def __post_init__(self) -> None:
        self._places = [_place(grad) for grad in self.grads.values()]
        self._looks = [_some(grad.detach()) for grad in self.grads.values()]
        self._seen = [look.clone() for look in self._looks]

    @property
    def changed(self) -> bool:
        """Whether a gradient is not what it was."""
        return (
            any(self.params[name].grad is not grad for name, grad in self.grads.items())
            or [_place(grad) for grad in self.grads.values()] != self._places
            or not all(map(torch.equal, self._looks, self._seen))
        )

    def to_send(self) -> dict[str, Gradient]:
        """The gradients, to be sent. Not to be called by the thread that trains: it may have to look closer at them."""
        with _beside(self.ready):
            for i, grad in enumerate(self.grads.values()):
                if grad.numel() and not self._seen[i].any():
                    look = _other_than_zero(grad.detach())
                    self._looks[i], self._seen[i] = look, look.clone()
            return to_send(self.grads)

    def cancel(self) -> bool:
        """Take the part back, if it has not left."""
        return self.delivery is None or self.delivery.cancel()


def names_there(parts: Sequence[Part]) -> frozenset[str]:
    """The names of all gradients that have arrived as they now are; none when some part has failed."""
    if any(part.delivery is None or part.delivery.exception() is not None for part in parts):
        return frozenset()
    return frozenset(name for part in parts if not part.changed for name in part.grads)


def _beside(ready: torch.cuda.Event | None) -> AbstractContextManager[Any]:
    """A stream in which gradients can be copied while the backward pass goes on in its own."""
    if ready is None:
        return nullcontext()
    stream = torch.cuda.Stream(ready.device)  # type: ignore[no-untyped-call] # of torch
    stream.wait_event(ready)
    return torch.cuda.stream(stream)


def _place(grad: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return grad._version, grad.data_ptr(), grad.stride()  # noqa: SLF001 - torch has no public name for it


def _some(tensor: Tensor) -> Tensor:
    """A view of some of the numbers."""
    flat = _flat(tensor)
    # An odd step, since an even one may meet the same column in every row, and a column may be all zeros.
    return flat[:: flat.numel() // _LOOKS | 1]


def _other_than_zero(tensor: Tensor) -> Tensor:
    """A view of one number: one that is not zero, if there is any."""
    flat = _flat(tensor)
    index = int((flat != 0).view(torch.uint8).argmax())
    return flat[index : index + 1]


def _flat(tensor: Tensor) -> Tensor:
    """The numbers in the order of memory: a view, unless there are gaps between them."""
    in_memory = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(in_memory).reshape(-1)
