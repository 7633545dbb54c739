"""The small frozen values that travel between rooms: layouts, versions, receipts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch

T = TypeVar("T")
Outcome = Literal["applied", "buffered", "skipped_nonfinite"]
Role = Literal["trained", "buffer", "frozen"]
Durability = Literal["step", "checkpoint", "memory"]
NonfinitePolicy = Literal["reject", "skip", "zero"]
DEFAULT_GROUP = "default"


class once(Generic[T]):  # noqa: N801  written above a method, as functools.cached_property is
    """An attribute that is worked out when it is first asked for: functools.cached_property without its lock.

    A push has a handful, and taking the locks costs it more than working them out.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type) -> T:
        value = owner.__dict__[self._name] = self._function(owner)
        return value


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a session.

    Attributes:
      group: of hyperparameters; of no meaning unless it is trained.
      role: ``trained`` by the optimizer; ``buffer``, which travels with the weights and may be set by a push, such as
        the running statistics of a normalisation; or ``frozen``, which only a put changes.
    """

    name: str
    shape: tuple[int, ...]
    group: str = DEFAULT_GROUP
    role: Role = "trained"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Span(NamedTuple):
    """A contiguous range of elements, ``start`` inclusive, ``stop`` exclusive."""

    start: int
    stop: int


_ROLES: tuple[Role, ...] = ("trained", "buffer", "frozen")


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the flat buffers; the same for weights, gradients and every moment.

    A group is one contiguous range, so an element-wise optimizer is one call per group. Trained tensors come first,
    then buffers, then frozen ones: gradients, moments and what a push may hold are each a beginning of the weights.
    Fixed when the session is created.

    Attributes:
      tensors: in layout order, group by group.
      dtype: of the weights and of all arithmetic, float32 or float64.
      spans: tensor name → its elements in a flat buffer, in layout order.
      shapes: tensor name → its shape.
      groups: group name → its elements, in layout order; trained tensors alone.
      numel: length of a flat buffer of weights.
    """

    tensors: tuple[TensorSpec, ...]
    dtype: torch.dtype
    spans: Mapping[str, Span] = field(init=False)
    groups: Mapping[str, Span] = field(init=False)
    shapes: Mapping[str, tuple[int, ...]] = field(init=False)
    numel: int = field(init=False)

    @classmethod
    def arrange(cls, tensors: Sequence[TensorSpec], groups: Sequence[str], dtype: torch.dtype) -> Layout:
        """Order tensors by role and group, groups as given, keeping the order of tensors inside each."""
        rank = {name: i for i, name in enumerate(groups)}
        return cls(tuple(sorted(tensors, key=lambda t: (_ROLES.index(t.role), rank.get(t.group, 0)))), dtype)

    def __post_init__(self) -> None:
        spans: dict[str, Span] = {}
        groups: dict[str, Span] = {}
        at = 0
        for tensor in self.tensors:
            spans[tensor.name] = Span(at, at + tensor.numel)
            if tensor.role == "trained":
                start = groups[tensor.group].start if tensor.group in groups else at
                groups[tensor.group] = Span(start, at + tensor.numel)
            at += tensor.numel
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "shapes", {t.name: t.shape for t in self.tensors})
        object.__setattr__(self, "numel", at)

    @cached_property
    def trained(self) -> Layout:
        """The tensors that have gradients."""
        return self._with("trained")

    @cached_property
    def pushable(self) -> Layout:
        """The tensors that a push may hold: gradients, and new values of buffers."""
        return self._with("trained", "buffer")

    @cached_property
    def of_buffers(self) -> Layout:
        """The tensors that a push may set, by themselves; their offsets count from the first of them."""
        return self._with("buffer")

    def _with(self, *roles: Role) -> Layout:
        kept = tuple(tensor for tensor in self.tensors if tensor.role in roles)
        return self if len(kept) == len(self.tensors) else Layout(kept, self.dtype)

    def of_dtype(self, dtype: torch.dtype) -> Layout:
        """The same tensors in another dtype."""
        return self if dtype == self.dtype else Layout(self.tensors, dtype)

    def cut(self, flat: torch.Tensor, group: str) -> torch.Tensor:
        """The elements of one group in ``flat``, shape [at least the group's end]; no copy."""
        start, stop = self.groups[group]
        # A view of everything would be one too, and costs as much as a small update.
        return flat if stop - start == flat.numel() else flat[start:stop]

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name → view of ``flat`` (shape [numel]) in the tensor's own shape; no copy."""
        return {name: flat[span.start : span.stop].view(self.shapes[name]) for name, span in self.spans.items()}


class BufferSize(NamedTuple):
    """What one flat buffer takes: ``numel`` elements of ``dtype``."""

    numel: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


Buffers = Mapping[str, BufferSize]
"""Name → size of each flat buffer that a session keeps beside its weights and gradients."""


class Version(NamedTuple):
    """Names one state of a session: committed steps, and whatever else changed weights or state."""

    step: int
    generation: int

    @property
    def etag(self) -> str:
        """As it stands in an ETag header, without the quotes."""
        return f"{self.step}.{self.generation}"


class Receipt(NamedTuple):
    """What one push did. Norms are 2-norms over all trained tensors; None where not a finite number.

    ``loss_scale`` is what the next loss is to be multiplied by; None without loss scaling.
    """

    session: str
    step: int
    base_step: int
    outcome: Outcome
    lr: float
    loss: float | None
    grad_norm: float | None
    clip_scale: float
    update_norm: float | None
    param_norm: float | None
    durable_step: int
    loss_scale: float | None = None
    duplicate: bool = False


class StepRow(NamedTuple):
    """One line of a session's history: the receipt, and what the push said of itself."""

    receipt: Receipt
    committed_at: datetime
    num_examples: int | None = None
    worker: str | None = None
    hyperparameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as history knows it; ``spec`` is its description as `GET /v1/sessions/{id}` gives it."""

    id: str
    name: str
    optimizer: str
    spec: Mapping[str, Any]
    created_at: datetime
    status: Literal["live", "lost"] = "live"


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened to a session between steps: created, changed, params_put, state_put, …"""

    session: str
    kind: str
    step: int
    detail: Mapping[str, Any]
    at: datetime = field(default_factory=utc_now)
    id: int | None = None
