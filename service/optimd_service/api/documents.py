"""The JSON documents of version 1: they are the OpenAPI's schemas, and tests hold every reply against them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from optimd_service.session.advice import Task
from optimd_service.session.description import OptimizerExchange, SessionChange, SessionDescription
from optimd_service.types import Role

Etag = Annotated[str, Field(pattern=r"^\d+\.\d+$", examples=["3.0"], description="`<step>.<generation>`.")]
Tensors = dict[str, Any]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReceiptDocument(_Document):
    """What one push did. Norms are 2-norms over all tensors; null where not a finite number."""

    session: str
    step: int = Field(description="Which step this is, from 1.")
    base_step: int = Field(description="The step whose weights it was applied to.")
    outcome: Literal["applied", "buffered", "skipped_nonfinite"]
    lr: float
    loss: float | None = Field(description="As pushed.")
    grad_norm: float | None = Field(description="Before clipping.")
    clip_scale: float = Field(description="What the gradients were multiplied by; 1 without clipping.")
    update_norm: float | None = Field(description="Of new weights − old weights.")
    param_norm: float | None = Field(description="Of the new weights.")
    durable_step: int = Field(description="The newest step that a crash now would not lose.")
    loss_scale: float | None = Field(description="What the next loss is to be multiplied by; null without scaling.")
    duplicate: bool = Field(description="Whether this receipt was given before.")


class StepDocument(ReceiptDocument):
    """One line of history."""

    num_examples: int | None
    worker: str | None
    hyperparameters: dict[str, Any] | None = Field(description="What held for this step alone.")
    committed_at: datetime


class StepList(_Document):
    steps: list[StepDocument]
    next: int | None = Field(description="`after` of the next page.")


class EventDocument(_Document):
    id: int
    kind: Literal["created", "changed", "params_put", "state_put", "optimizer_changed", "skipped_nonfinite", "lost"]
    step: int
    at: datetime
    detail: dict[str, Any]


class EventList(_Document):
    events: list[EventDocument]
    next: int | None


class TensorDocument(_Document):
    name: str
    shape: list[int]
    dtype: Literal["F32", "F64"]
    group: str | None = Field(description="null unless it is trained.")
    role: Role
    init: dict[str, Any] | None


class SessionSummary(_Document):
    """A session without its tensors."""

    id: str
    name: str
    status: Literal["live", "lost"]
    created_at: datetime
    step: int
    etag: Etag
    skipped: int = Field(description="Pushes that the non-finite policy skipped.")
    bytes: int = Field(description="Weights, gradient buffer and state.")
    loss_scale_now: float | None = Field(description="What the next loss is to be multiplied by; null without scaling.")
    optimizer: dict[str, Any]
    groups: list[dict[str, Any]]
    nonfinite: Literal["reject", "skip", "zero"]
    schedule: dict[str, Any] | None
    clip: dict[str, Any] | None
    centralize: bool
    maximize: bool
    accumulate: dict[str, Any] | None
    loss_scale: dict[str, Any] | None
    grad_dtype: Literal["BF16"] | None
    state_dtype: Literal["f32", "bf16", "8bit"]
    ema: dict[str, Any] | None
    swa: dict[str, Any] | None
    seed: int
    storage: dict[str, Any]
    durability: Literal["memory"]
    parameters: int = Field(description="Number of elements.")


class SessionDocument(SessionSummary):
    """A session: its create body as it now stands, and what has become of it."""

    hyperparameters: dict[str, dict[str, Any]] = Field(description="Each group's full set.")
    tensors: list[TensorDocument] = Field(description="In layout order.")


class SessionList(_Document):
    sessions: list[SessionSummary]
    next: str | None


class Stands(_Document):
    step: int
    etag: Etag


class StatePut(Stands):
    passed_over: list[str] | None = Field(None, description="Tensors that the session has no place for; not strict.")


class ExchangeReport(Stands):
    optimizer: str
    carried: dict[str, str] = Field(description="Buffer of the new optimizer → buffer of the old one.")
    dropped: list[str] = Field(description="Buffers of the old optimizer that nothing comes of.")
    dropped_hyperparameters: list[str] = Field(description="`group.name` of what the new optimizer does not have.")


class CostDocument(_Document):
    optimizer: str
    parameters: int
    trained_parameters: int
    weights_bytes: int
    grads_bytes: int
    state_bytes: int
    state: dict[str, int] = Field(description="Bytes by buffer.")
    bytes: int
    state_bytes_per_parameter: float = Field(description="For each trained parameter.")


class ParamsReply(Stands):
    params: Tensors = Field(description="Nested lists by tensor name.")


class ParamsBody(_Document):
    params: Tensors


class PushBody(_Document):
    """A push in JSON."""

    grads: Tensors = Field(
        description="Nested lists by tensor name; every trained tensor of the session. For an optimizer that takes "
        'rows, some rows of a tensor alone: `{"rows": [1, 5], "values": [[…], […]]}`.'
    )
    buffers: Tensors | None = Field(None, description="New values of all tensors whose role is `buffer`, or of none.")
    loss: float | None = None
    num_examples: int | None = Field(None, ge=0)
    worker: str | None = Field(None, max_length=200)
    hyperparameters: dict[str, Any] | None = Field(None, examples=[{"lr": 0.1, "groups": {"no_decay": {"lr": 0.2}}}])


class PushReply(_Document):
    receipt: ReceiptDocument
    params: Tensors | None = None


class OptimizerDocument(_Document):
    name: str
    summary: str
    hyperparameters: dict[str, Any] = Field(description="JSON Schema.")
    defaults: dict[str, Any]
    state: list[str]
    bytes_per_parameter: float
    takes_rows: bool = Field(description="Whether gradients may name their rows, with the default hyperparameters.")
    state_dtypes: dict[str, float] = Field(description="What the state may be kept in → bytes per parameter.")
    source: str


class OptimizerList(_Document):
    optimizers: list[OptimizerDocument]


class ReasonDocument(_Document):
    text: str
    source: str | None = Field(description="Paper or documentation; null for what follows from the task alone.")


class AdviceMemory(_Document):
    """In float32, or in float64 for a task of precision f64."""

    bytes_per_parameter: float = Field(description="Of the optimizer's state.")
    state_bytes: int
    total_bytes: int = Field(description="Weights, gradients and state.")


class Recommendation(_Document):
    """One choice, in the words of a create body."""

    optimizer: str
    hyperparameters: dict[str, Any] = Field(description="Those to set; the rest keep their defaults.")
    groups: Literal["no_decay"] | list[dict[str, Any]]
    schedule: dict[str, Any]
    clip: dict[str, float] | None
    memory: AdviceMemory
    score: float = Field(description="Points of the rules that spoke for it; only the order means something.")
    reasons: list[ReasonDocument]


class AdviceDocument(_Document):
    recommendations: list[Recommendation] = Field(max_length=5, description="The best first.")
    warnings: list[ReasonDocument]
    needed_bytes: int | None = Field(
        description="The least `memory_bytes` that would allow a choice; null where there is one."
    )


class ProblemDocument(BaseModel):
    """RFC 9457; further members are evidence."""

    type: str = Field(pattern="^/problems/[a-z-]+$")
    title: str
    status: int
    detail: str


class ProblemMeaning(_Document):
    type: str
    status: int
    title: str


class ProblemList(_Document):
    problems: list[ProblemMeaning]


class HistoryHealthDocument(_Document):
    pending: int
    dropped: int
    failing: bool


class Readiness(_Document):
    status: Literal["ready"]
    sessions: int
    history: HistoryHealthDocument


class Liveness(_Document):
    status: Literal["alive"]


DOCUMENTS: tuple[type[BaseModel], ...] = (
    SessionDescription, SessionChange, SessionDocument, SessionList, PushBody, PushReply, ParamsBody, ParamsReply,
    Stands, StatePut, ExchangeReport, CostDocument, OptimizerExchange, StepDocument, StepList, EventList,
    OptimizerDocument, OptimizerList, ProblemDocument, ProblemMeaning, ProblemList, Readiness, Liveness, Task,
    AdviceDocument,
)  # fmt: skip
