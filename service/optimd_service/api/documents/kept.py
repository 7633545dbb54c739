"""What is kept of a session's past, and returning to it."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from optimd_service.api.documents.base import Document, Etag, Stands


class CheckpointDocument(Document):
    step: int
    etag: Etag
    labels: list[str] = Field(description="Under which it is kept; without any, as long as it is among the newest.")
    created_at: datetime
    bytes: int = Field(description="On disk.")


class CheckpointList(Document):
    checkpoints: list[CheckpointDocument] = Field(description="The oldest first.")
    retained: list[tuple[int, int]] = Field(description="First and last of steps that can be returned to.")
    next: None = Field(None, description="null: all are here.")


class RollbackReport(Stands):
    left: Etag = Field(description="Where the session stood; the steps behind the new one count no more.")
