"""The catalogue of optimizers, and advice on which to take."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from optimd_service.api.documents.base import Document


class OptimizerDocument(Document):
    name: str
    summary: str
    hyperparameters: dict[str, Any] = Field(description="JSON Schema.")
    defaults: dict[str, Any]
    state: list[str]
    bytes_per_parameter: float
    takes_rows: bool = Field(description="Whether gradients may name their rows, with the default hyperparameters.")
    state_dtypes: dict[str, float] = Field(description="What the state may be kept in → bytes per parameter.")
    source: str


class OptimizerList(Document):
    optimizers: list[OptimizerDocument]


class ReasonDocument(Document):
    text: str
    source: str | None = Field(description="Paper or documentation; null for what follows from the task alone.")


class AdviceMemory(Document):
    """In float32, or in float64 for a task of precision f64; the state as `state_dtype` says."""

    bytes_per_parameter: float = Field(description="Of the optimizer's state.")
    state_bytes: int
    total_bytes: int = Field(description="Weights, gradients and state.")


class Recommendation(Document):
    """One choice, in the words of a create body."""

    optimizer: str
    hyperparameters: dict[str, Any] = Field(description="Those to set; the rest keep their defaults.")
    groups: Literal["no_decay"] | list[dict[str, Any]]
    schedule: dict[str, Any]
    clip: dict[str, float] | None
    state_dtype: Literal["f32", "bf16", "8bit"] = Field(description="Fewer bytes only where f32 does not fit.")
    memory: AdviceMemory
    score: float = Field(description="Points of the rules that spoke for it; only the order means something.")
    reasons: list[ReasonDocument]


class AdviceDocument(Document):
    recommendations: list[Recommendation] = Field(max_length=5, description="The best first.")
    warnings: list[ReasonDocument]
    needed_bytes: int | None = Field(
        description="The least `memory_bytes` that would allow a choice; null where there is one."
    )
