"""What one gradient would do under several settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimd_service.api.documents.base import Document, Stands


class PartDocument(Document):
    """2-norms over some of the weights; null where not a finite number."""

    update_norm: float | None
    param_norm: float | None = Field(description="Of the weights as they stand.")
    grad_norm: float | None = Field(description="As it was sent.")
    relative_update: float | None = Field(description="`update_norm` / `param_norm`.")


class TensorPartDocument(PartDocument):
    name: str


class TriedDocument(Document):
    """What a step would do by some settings."""

    name: str
    optimizer: str
    outcome: Literal["applied", "skipped_nonfinite"]
    lr: float
    clip_scale: float
    update_norm: float | None = Field(description="Of new weights − old weights.")
    update_rms: float | None = Field(description="Of one element: `update_norm` / √(their number).")
    relative_update: float | None
    cosine_to_descent: float | None = Field(description="To the negative gradient; null where one of them is zero.")
    cosine_to_own: float | None = Field(description="To the update by the session's own settings.")
    groups: dict[str, PartDocument]
    tensors: list[TensorPartDocument] = Field(description="Those with the largest `relative_update`, 256 at most.")
    carried: dict[str, str] = Field(description="Its state buffers that begin as the session's.")
    fresh: list[str] = Field(description="Its state buffers that begin anew.")


class WhatIfReport(Stands):
    grad_norm: float | None
    own: TriedDocument = Field(description="By the session's own settings.")
    candidates: list[TriedDocument] = Field(description="As they were asked for.")
