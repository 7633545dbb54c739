"""What all documents have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Etag = Annotated[str, Field(pattern=r"^\d+\.\d+$", examples=["3.0"], description="`<step>.<generation>`.")]
Tensors = dict[str, Any]
"""Nested lists of numbers, by tensor name."""


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stands(Document):
    step: int
    etag: Etag
