"""Other settings, for a session that begins where another stands: a fork, or a copy that one push is tried on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import Field

from optimd_service.optim.clipping import Clip
from optimd_service.optim.schedules import Schedule
from optimd_service.session.changing import changed
from optimd_service.session.checkpointing import Checkpointing
from optimd_service.session.description import (
    MAX_GROUPS,
    GroupChange,
    SessionChange,
    StorageDescription,
    Strict,
    Title,
    read_as,
    read_exchange,
)
from optimd_service.session.exchange import Exchange, exchange, exchange_
from optimd_service.session.moment import MomentDescription
from optimd_service.session.plan import TRANSIENT, Plan
from optimd_service.session.standing import Standing
from optimd_service.store.contract import StoredState, Working
from optimd_service.types import Buffers, BufferSize, Durability, NonfinitePolicy, Version, utc_now


class Alternative(Strict):
    """Settings in place of a session's; what is not said stays as the session has it."""

    optimizer: dict[str, Any] = Field(
        default={},
        description="Hyperparameters of every group without its own. With a `name`, another optimizer, as "
        "`PUT …/optimizer` takes it: its defaults for what is not said, and perhaps `carry`.",
    )
    groups: list[GroupChange] = Field(default=[], max_length=MAX_GROUPS)
    schedule: Schedule | None = Field(None, description="A new schedule, which begins here; null for none.")
    clip: Clip | None = Field(None, description="How gradients are clipped; null for not at all.")
    nonfinite: NonfinitePolicy | None = None


class ForkDescription(MomentDescription, Alternative):
    """The body of a fork: where it begins, one of the three or the present, and what is other there."""

    name: Title | None = Field(None, description="For people; default: the session's.")
    storage: StorageDescription | None = None
    durability: Durability | None = None
    checkpoint: Checkpointing | None = None


def read_fork(fields: dict[str, Any]) -> ForkDescription:
    """Check the body of a fork. Raises: InvalidField naming the first field that is wrong."""
    description = read_as(ForkDescription, fields)
    _ = description.moment
    return description


class Branch(NamedTuple):
    """Where other settings lead.

    Attributes:
      exchange: of optimizers, if there is another.
    """

    plan: Plan
    exchange: Exchange | None


def branch(plan: Plan, wanted: Alternative, step: int) -> Branch:
    """The plan with other settings, by the rules of `PUT …/optimizer` and of `PATCH`.

    Args:
      step: where a new schedule begins.

    Raises: InvalidField, InvalidHyperparameter.
    """
    another = exchange(plan, read_exchange(dict(wanted.optimizer))) if "name" in wanted.optimizer else None
    said = {"groups", "schedule", "clip", "nonfinite"} & wanted.model_fields_set
    change = SessionChange(
        **{name: getattr(wanted, name) for name in said}, optimizer={} if another else wanted.optimizer
    )
    return Branch(changed(plan if another is None else another.after, change, step), another)


def elsewhere(standing: Standing, wanted: ForkDescription) -> Standing:
    """A session as it stands, but for where it is kept. Raises: InvalidField."""
    said = standing.to_json()
    for name in ("storage", "durability", "checkpoint"):
        if getattr(wanted, name) is not None:
            said["description"][name] = wanted.model_dump(mode="json", include={name}, exclude_unset=True)[name]
    return Standing.from_json(said)


def forked(standing: Standing, wanted: ForkDescription, source: str, version: Version) -> tuple[Standing, Branch]:
    """How a fork stands, and how it comes to stand so. Raises: as ``branch``.

    Args:
      standing: of the source, at ``version``.   source: id.
    """
    there = elsewhere(standing, wanted)
    taken = branch(there.plan, wanted, version.step)
    name = there.name if wanted.name is None else wanted.name
    origin = {"session": source, "etag": version.etag}
    return replace(there, plan=taken.plan, name=name, skipped=0, created_at=utc_now(), origin=origin), taken


def sizes_of(working: Working) -> Buffers:
    """Of the state buffers that are worth a copy."""
    return {name: BufferSize(flat.numel(), flat.dtype) for name, flat in working.state.items() if name not in TRANSIENT}


def copy_(state: StoredState, source: Working, version: Version) -> None:
    """Let ``state`` be what ``source`` is, on whatever device. Raises: InsufficientMemory."""
    sizes = sizes_of(source)
    working = state.begin(sizes)
    working.params.copy_(source.params)
    for name in sizes:
        working.state[name].copy_(source.state[name])
    working.updates, working.started = source.updates, set(source.started)
    working.numbers = {owner: dict(held) for owner, held in source.numbers.items()}
    state.commit(working, version, {})


def enter_(state: StoredState, taken: Branch, version: Version) -> None:
    """Give a copy the state that its own settings begin with, under a version of its own.

    Raises: InsufficientMemory.
    """
    old = {} if taken.exchange is None else taken.exchange.moving(state.read_state())
    working = state.begin(taken.plan.buffers)
    if taken.exchange is not None:
        exchange_(working, taken.exchange, old)
    state.commit(working, version, {})
