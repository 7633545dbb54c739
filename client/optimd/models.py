"""What the server tells: sessions, receipts, steps, events, optimizers, as typed values.

Descriptions that grow with the server are typed dictionaries, so that a member this version has no name for is
still there to be read; what is read at every step is a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, NotRequired, Self, TypedDict

from optimd._safetensors import Array
from optimd.errors import MalformedReply

WireDtype = Literal["f32", "bf16", "f16", "f64"]
SessionStatus = Literal["live", "lost", "all"]


class TensorInfo(TypedDict):
    """One tensor of a session."""

    name: str
    shape: list[int]
    dtype: str
    group: str
    init: NotRequired[dict[str, Any]]


class SessionInfo(TypedDict):
    """A session as the server described it, without `tensors` where it comes from a list.

    `parameters` counts elements, `bytes` weights, gradient buffer and state; `hyperparameters` maps each group's
    name to its full set; `tensors` stand in layout order.
    """

    id: str
    name: str
    status: Literal["live", "lost"]
    created_at: str
    step: int
    etag: str
    skipped: int
    parameters: int
    bytes: int
    optimizer: dict[str, Any]
    groups: list[dict[str, Any]]
    hyperparameters: dict[str, dict[str, Any]]
    nonfinite: Literal["reject", "skip", "zero"]
    tensors: NotRequired[list[TensorInfo]]


class OptimizerInfo(TypedDict):
    """One optimizer of the catalogue; `hyperparameters` is a JSON Schema, `bytes_per_parameter` float32 state."""

    name: str
    summary: str
    hyperparameters: dict[str, Any]
    defaults: dict[str, Any]
    state: list[str]
    bytes_per_parameter: float
    source: str


class Event(TypedDict):
    """Something that happened to a session between steps."""

    id: int
    kind: str
    step: int
    at: str
    detail: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What one push did. Norms are 2-norms over all tensors of the session; None where not a finite number.

    Attributes:
      step: which step this is, from 1; unchanged when the push was skipped.
      base_step: the step whose weights it was applied to.
      lr: the session's learning rate as used in this step; a group's own is in its hyperparameters.
      grad_norm: of all gradients, before clipping.   clip_scale: what they were multiplied by.
      update_norm: of new weights − old weights.   param_norm: of the new weights.
      durable_step: the newest step that a crash now would not lose.
      duplicate: True when this receipt was given before, so that nothing was done this time.
    """

    session: str
    step: int
    base_step: int
    outcome: str
    lr: float
    loss: float | None
    grad_norm: float | None
    clip_scale: float
    update_norm: float | None
    param_norm: float | None
    durable_step: int
    duplicate: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what the server sent, passing over members this version does not know.

        Raises: MalformedReply when one is missing.
        """
        try:
            return cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})
        except (TypeError, ValueError) as error:
            raise MalformedReply(f"The reply's {cls.__name__.lower()} cannot be read: {error}.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Receipt):
    """One line of a session's history: the receipt, and what the push said of itself."""

    num_examples: int | None
    worker: str | None
    hyperparameters: dict[str, Any] | None
    committed_at: datetime

    def __post_init__(self) -> None:
        if isinstance(self.committed_at, str):
            object.__setattr__(self, "committed_at", datetime.fromisoformat(self.committed_at))


@dataclass(frozen=True, slots=True)
class StepResult:
    """A receipt and the weights after it: tensor name → array, empty for a step that pulled none."""

    receipt: Receipt
    params: dict[str, Array]


@dataclass(frozen=True, slots=True)
class StateDict:
    """Optimizer state under torch's names, such as `fc.weight.exp_avg`.

    Attributes:
      optimizer: its name in the catalogue.
      step: how many updates the moments have seen; torch's per-parameter `step`.
      tensors: `<tensor>.<buffer>` → array. A momentum buffer that has not started is absent.
    """

    optimizer: str
    step: int
    tensors: dict[str, Array]
