"""Where a session stood: what a rollback goes back to, and a fork begins from."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import Field

from optimd_service.errors import InvalidField
from optimd_service.session.description import Strict, read_as
from optimd_service.types import Version

Label = Annotated[str, Field(pattern=r"^\w[\w .+-]{0,99}$")]
Etag = Annotated[str, Field(pattern=r"^\d{1,18}\.\d{1,18}$")]


class Moment(NamedTuple):
    """A step, perhaps of one generation, or a checkpoint; the present without any of them.

    Attributes:
      generation: which of several versions at one step; the last that leads to the present without it.
      label: of a checkpoint, in place of a step.
    """

    step: int | None = None
    generation: int | None = None
    label: str | None = None

    def is_present(self, version: Version) -> bool:
        """Whether a session that stands at ``version`` is there already."""
        there = self.step in {None, version.step} and self.generation in {None, version.generation}
        return there and self.label is None

    @property
    def said(self) -> str:
        """As its sender wrote it."""
        if self.label is not None:
            return f"label {self.label!r}"
        return f"step {self.step}" if self.generation is None else f"etag {self.step}.{self.generation}"


class MomentDescription(Strict):
    """One of three ways to say a moment."""

    step: int | None = Field(None, ge=0, lt=2**63, description="As it stood behind this step.")
    etag: Etag | None = Field(None, description="As it stood at exactly this version.", examples=["50.1"])
    label: Label | None = Field(None, description="As it stood at the checkpoint of this label.")

    @property
    def moment(self) -> Moment:
        """Raises: InvalidField for one that is said in two ways."""
        said = [name for name in ("step", "etag", "label") if getattr(self, name) is not None]
        if len(said) > 1:
            raise InvalidField(f"Say one of {' and '.join(said)}: they may name two moments.", field=said[1])
        if self.etag is not None:
            step, generation = map(int, self.etag.split("."))
            return Moment(step, generation)
        return Moment(self.step, None, self.label)


class Rollback(MomentDescription):
    """The body of a rollback: one of the three."""


class CheckpointOrder(Strict):
    """The body of a checkpoint."""

    label: Label | None = Field(
        None,
        description="Kept until it is deleted, or another checkpoint is given the label; without one, as long as it is "
        "among the newest.",
    )


def read_rollback(fields: dict[str, Any]) -> Moment:
    """Check the body of a rollback. Raises: InvalidField."""
    moment = read_as(Rollback, fields).moment
    if moment == Moment():
        raise InvalidField("Say where to go back to: a `step`, an `etag` or the `label` of a checkpoint.", field="step")
    return moment


def read_label(fields: dict[str, Any]) -> str | None:
    """Check the body of a checkpoint. Raises: InvalidField."""
    return read_as(CheckpointOrder, fields).label
