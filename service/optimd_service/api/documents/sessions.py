"""Sessions, their weights and their state."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from optimd_service.api.documents.base import Document, Etag, Stands, Tensors
from optimd_service.session.checkpointing import Checkpointing
from optimd_service.session.wire_dtypes import Wire
from optimd_service.types import Durability, Role


class TensorDocument(Document):
    name: str
    shape: list[int]
    dtype: Literal["F32", "F64"]
    group: str | None = Field(description="null unless it is trained.")
    role: Role
    init: dict[str, Any] | None


class SessionSummary(Document):
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
    wire: Wire
    state_dtype: Literal["f32", "bf16", "8bit"]
    ema: dict[str, Any] | None
    swa: dict[str, Any] | None
    seed: int
    storage: dict[str, Any]
    durability: Durability
    checkpoint: Checkpointing
    origin: dict[str, Any] | None = Field(description="The session and the version that it was forked from.")
    parameters: int = Field(description="Number of elements.")
    segments: bool = Field(description="Whether a push may come over several connections (`Content-Range`).")


class SessionDocument(SessionSummary):
    """A session: its create body as it now stands, and what has become of it."""

    hyperparameters: dict[str, dict[str, Any]] = Field(description="Each group's full set.")
    tensors: list[TensorDocument] = Field(description="In layout order.")


class SessionList(Document):
    sessions: list[SessionSummary]
    next: str | None


class StatePut(Stands):
    passed_over: list[str] | None = Field(None, description="Tensors that the session has no place for; not strict.")


class ExchangeReport(Stands):
    optimizer: str
    carried: dict[str, str] = Field(description="Buffer of the new optimizer → buffer of the old one.")
    dropped: list[str] = Field(description="Buffers of the old optimizer that nothing comes of.")
    dropped_hyperparameters: list[str] = Field(description="`group.name` of what the new optimizer does not have.")


class CostDocument(Document):
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


class ParamsBody(Document):
    params: Tensors
