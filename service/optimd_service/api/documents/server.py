"""Problems, and how the server is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from optimd_service.api.documents.base import Document


class ProblemDocument(BaseModel):
    """RFC 9457; further members are evidence."""

    type: str = Field(pattern="^/problems/[a-z-]+$")
    title: str
    status: int
    detail: str


class ProblemMeaning(Document):
    type: str
    status: int
    title: str


class ProblemList(Document):
    problems: list[ProblemMeaning]


class HistoryHealthDocument(Document):
    pending: int
    dropped: int
    failing: bool


class RedisHealthDocument(Document):
    warnings: list[str] = Field(description="What it may lose of what it has acknowledged, and why; empty if nothing.")


class Readiness(Document):
    status: Literal["ready"]
    sessions: int
    history: HistoryHealthDocument
    redis: RedisHealthDocument | None = Field(description="null without OPTIMD_REDIS_URL.")


class Liveness(Document):
    status: Literal["alive"]
