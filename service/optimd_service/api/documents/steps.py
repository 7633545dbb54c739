"""Steps and events: what a push says, what it did, and what was recorded."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from optimd_service.api.documents.base import Document, Tensors


class ReceiptDocument(Document):
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


class StepList(Document):
    steps: list[StepDocument]
    next: int | None = Field(description="`after` of the next page.")


class EventDocument(Document):
    id: int
    kind: Literal[
        "created",
        "changed",
        "params_put",
        "state_put",
        "optimizer_changed",
        "skipped_nonfinite",
        "checkpoint",
        "checkpoint_removed",
        "rolled_back",
        "forked",
        "lost",
    ]
    step: int
    at: datetime
    detail: dict[str, Any]


class EventList(Document):
    events: list[EventDocument]
    next: int | None


class PushBody(Document):
    """A push in JSON."""

    grads: Tensors = Field(
        description="Nested lists by tensor name; every trained tensor of the session, or with `contribution` some. "
        "For an optimizer that takes "
        'rows, some rows of a tensor alone: `{"rows": [1, 5], "values": [[…], […]]}`.'
    )
    buffers: Tensors | None = Field(None, description="New values of all tensors whose role is `buffer`, or of none.")
    loss: float | None = None
    num_examples: int | None = Field(None, ge=0)
    worker: str | None = Field(None, max_length=200)
    hyperparameters: dict[str, Any] | None = Field(None, examples=[{"lr": 0.1, "groups": {"no_decay": {"lr": 0.2}}}])


class SegmentReply(Document):
    """A segment of a push has come that does not lead."""

    received: int = Field(description="Its bytes.")


class PushReply(Document):
    receipt: ReceiptDocument
    params: Tensors | None = None
