"""What the server tells: sessions, receipts, steps, events, optimizers, as typed values.

Descriptions that grow with the server are typed dictionaries, so that a member this version has no name for is
still there to be read; what is read at every step is a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NotRequired, Self, TypedDict

from optimd._advice import (
    Advice,
    AdviceMemory,
    ModelKind,
    Reason,
    Recommendation,
    Symptom,
    TaskData,
    TaskFields,
)
from optimd._safetensors import Array, WireDtype
from optimd.errors import MalformedReply

__all__ = [
    "Advice",
    "AdviceMemory",
    "Averaged",
    "Changes",
    "Checkpoint",
    "CostInfo",
    "Event",
    "ExchangeReport",
    "Kept",
    "ModelKind",
    "OptimizerInfo",
    "Part",
    "Reason",
    "Receipt",
    "Recommendation",
    "RollbackReport",
    "SessionInfo",
    "SessionStatus",
    "StateDict",
    "Step",
    "StepResult",
    "Symptom",
    "TaskData",
    "TaskFields",
    "TensorInfo",
    "TensorPart",
    "Tried",
    "WhatIfReport",
    "WireDtype",
]

Averaged = Literal["ema", "swa", "eval"]
"""Weights in place of the current ones: a session's averages, and those that its optimizer is to be evaluated at."""
SessionStatus = Literal["live", "lost", "all"]


class TensorInfo(TypedDict):
    """One tensor of a session; `group` is None unless its role is "trained"."""

    name: str
    shape: list[int]
    dtype: str
    group: str | None
    role: NotRequired[Literal["trained", "buffer", "frozen"]]
    init: NotRequired[dict[str, Any]]


class SessionInfo(TypedDict):
    """A session as the server described it, without `hyperparameters` and `tensors` where it comes from a list.

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
    loss_scale_now: float | None
    parameters: int
    segments: NotRequired[bool]
    bytes: int
    optimizer: dict[str, Any]
    groups: list[dict[str, Any]]
    hyperparameters: NotRequired[dict[str, dict[str, Any]]]
    nonfinite: Literal["reject", "skip", "zero"]
    schedule: NotRequired[dict[str, Any] | None]
    clip: NotRequired[dict[str, Any] | None]
    centralize: NotRequired[bool]
    maximize: NotRequired[bool]
    accumulate: NotRequired[dict[str, Any] | None]
    loss_scale: NotRequired[dict[str, Any] | None]
    ema: NotRequired[dict[str, Any] | None]
    swa: NotRequired[dict[str, Any] | None]
    wire: NotRequired[dict[str, Any]]
    state_dtype: NotRequired[str]
    grad_dtype: NotRequired[str | None]
    seed: NotRequired[int]
    storage: NotRequired[dict[str, Any]]
    durability: NotRequired[str]
    checkpoint: NotRequired[dict[str, Any]]
    origin: NotRequired[dict[str, Any] | None]
    tensors: NotRequired[list[TensorInfo]]


class OptimizerInfo(TypedDict):
    """One optimizer of the catalogue.

    `hyperparameters` is a JSON Schema, `bytes_per_parameter` float32 state, `state_dtypes` the same for each
    `state_dtype` that it takes, and `takes_rows` whether gradients may be a RowGradient.
    """

    name: str
    summary: str
    hyperparameters: dict[str, Any]
    defaults: dict[str, Any]
    state: list[str]
    bytes_per_parameter: float
    takes_rows: NotRequired[bool]
    state_dtypes: NotRequired[dict[str, float]]
    source: str


class CostInfo(TypedDict):
    """What a session would hold in memory; `state` is bytes by buffer, `bytes` all of it together."""

    optimizer: str
    parameters: int
    trained_parameters: int
    weights_bytes: int
    grads_bytes: int
    state_bytes: int
    state: dict[str, int]
    bytes: int
    state_bytes_per_parameter: float


class ExchangeReport(TypedDict):
    """What became of a session's state when it was given another optimizer.

    `carried` maps buffers of the new optimizer to those of the old that they began as; `dropped` are buffers that
    nothing came of, and `dropped_hyperparameters`, as `group.name`, what the new optimizer does not have.
    """

    step: int
    etag: str
    optimizer: str
    carried: dict[str, str]
    dropped: list[str]
    dropped_hyperparameters: list[str]


class Checkpoint(TypedDict):
    """A session's whole state, kept on disk. `labels` are names under which it is kept; `bytes` is its file's size."""

    step: int
    etag: str
    labels: list[str]
    created_at: str
    bytes: int


class Kept(TypedDict):
    """What a session can go back to. `retained` are first and last steps of stretches of steps."""

    checkpoints: list[Checkpoint]
    retained: list[tuple[int, int]]


class Changes(TypedDict, total=False):
    """What may be other in a fork; each as `Client.create_session` takes it."""

    name: str
    optimizer: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    schedule: Mapping[str, Any] | None
    clip: Mapping[str, Any] | None
    nonfinite: str
    durability: str
    checkpoint: Mapping[str, Any]
    storage: Mapping[str, Any]


class RollbackReport(TypedDict):
    """Where a session stands after a rollback, and the version that it left."""

    step: int
    etag: str
    left: str


class Part(TypedDict):
    """Some of a session's weights under an update: 2-norms; `relative_update` is `update_norm` / `param_norm`."""

    update_norm: float | None
    param_norm: float | None
    grad_norm: float | None
    relative_update: float | None


class TensorPart(Part):
    """One tensor's."""

    name: str


class Tried(TypedDict):
    """What a step would do by some settings.

    `cosine_to_descent` is between the update and the negative gradient, `cosine_to_own` between it and the update by
    the session's own settings. `tensors` are those with the largest `relative_update`. State buffers in `carried` begin
    as the session's, those in `fresh` anew.
    """

    name: str
    optimizer: str
    outcome: str
    lr: float
    clip_scale: float
    update_norm: float | None
    update_rms: float | None
    relative_update: float | None
    cosine_to_descent: float | None
    cosine_to_own: float | None
    groups: dict[str, Part]
    tensors: list[TensorPart]
    carried: dict[str, str]
    fresh: list[str]


class WhatIfReport(TypedDict):
    """What one gradient would do: by the session's `own` settings, and by each of the `candidates`."""

    step: int
    etag: str
    grad_norm: float | None
    own: Tried
    candidates: list[Tried]


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
      step: which step this is, from 1; unchanged when the push was no step.
      base_step: the step whose weights it was applied to.
      outcome: "applied"; "buffered" while more pushes must come before a step; "skipped_nonfinite".
      lr: the session's learning rate as used in this step; a group's own is in its hyperparameters.
      grad_norm: of all gradients, before clipping.   clip_scale: what they were multiplied by.
      update_norm: of new weights − old weights.   param_norm: of the new weights.
      durable_step: the newest step that a crash now would not lose.
      loss_scale: what the next loss is to be multiplied by; None without loss scaling.
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
    loss_scale: float | None = None
    duplicate: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what the server sent, passing over members this version does not know.

        Raises: MalformedReply when one is missing.
        """
        try:
            return cls(**{name: document[name] for name in cls.__dataclass_fields__ if name in document})
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
      numbers: group → name → what the optimizer remembers of the group beside its buffers, such as `mu_product`.
    """

    optimizer: str
    step: int
    tensors: dict[str, Array]
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
