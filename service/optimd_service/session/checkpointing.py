"""When a session's checkpoints are made, and how many are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from optimd_service.types import Durability

# Replayed in seconds, and a small part of what a disk has.
SHORTEST_STRETCH = 2**26
# A checkpoint is some three quarters of what is held: so it makes writing a fifth more.
STATES_A_STRETCH = 4
USUAL_SECONDS = 60.0


class Checkpointing(BaseModel):
    """When checkpoints are made beside those that are asked for; without either, when the journal has grown long."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    steps: Annotated[int, Field(ge=1, lt=2**63)] | None = Field(None, description="After so many steps.")
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="After so many seconds in which there were steps; 60 with durability `checkpoint`."
    )
    keep: int = Field(2, ge=1, le=1000, description="How many are kept, with the journal behind the oldest of them.")

    def of(self, durability: Durability) -> Checkpointing:
        """What it comes to."""
        usual = durability == "checkpoint" and self.steps is None and self.seconds is None
        return self.model_copy(update={"seconds": USUAL_SECONDS}) if usual else self

    def stretch(self, held_bytes: int) -> int:
        """Bytes that the journal may grow by between two."""
        return max(SHORTEST_STRETCH, STATES_A_STRETCH * held_bytes)
