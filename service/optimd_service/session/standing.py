"""A session as it stands, beside its weights and state: what its store keeps of it, and what it is drawn from again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from optimd_service.optim.catalogue import find
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.description import read_description
from optimd_service.session.plan import Plan
from optimd_service.session.settings import Settings
from optimd_service.types import utc_now

_CHANGED_BY_PATCH = ("nonfinite", "clip", "schedule", "wire")
_TICK = timedelta(microseconds=1)
# Of which rows may still wait for a database that is away.
MOST_FALLBACKS = 32


@dataclass(frozen=True)
class Standing:
    """What a session is, as said at its creation and changed since.

    Attributes:
      blueprint: what was said at creation.
      plan: what it does with the next push.
      skipped: pushes that the non-finite policy skipped.
      origin: the session and the version that it was forked from.
      fallbacks: the step to which a crash took it back, and when, of the last few that did; the history may not know.
    """

    blueprint: Blueprint
    plan: Plan
    name: str
    skipped: int = 0
    created_at: datetime = field(default_factory=utc_now)
    origin: Mapping[str, Any] | None = None
    fallbacks: tuple[tuple[int, datetime], ...] = ()

    @classmethod
    def first(cls, blueprint: Blueprint) -> Standing:
        """Of a session that has just been created."""
        return cls(blueprint, blueprint.plan, blueprint.description.name)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        described = self.blueprint.description.model_dump(mode="json", exclude_unset=True, exclude={"params"})
        tensors = [tensor.model_dump(mode="json", exclude_unset=True) for tensor in self.blueprint.tensors]
        settings, policy = self.plan.settings, self.plan.policy
        changed = {name: _dumped(getattr(policy, name)) for name in _CHANGED_BY_PATCH}
        return {
            "description": {**described, "tensors": tensors},
            "optimizer": {"name": settings.optimizer.name, "base": dict(settings.base), "own": _plain(settings.own)},
            "policy": {**changed, "schedule_from": policy.schedule_from},
            "name": self.name,
            "skipped": self.skipped,
            "created_at": self.created_at.isoformat(),
            "origin": self.origin,
            "fallbacks": [(step, at.isoformat()) for step, at in self.fallbacks],
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Standing:
        """What ``to_json`` gave."""
        blueprint = Blueprint.draw(read_description(kept["description"]), None)
        return cls(
            blueprint,
            _plan(blueprint, kept),
            kept["name"],
            kept["skipped"],
            datetime.fromisoformat(kept["created_at"]),
            kept["origin"],
            tuple((step, datetime.fromisoformat(at)) for step, at in kept["fallbacks"]),
        )

    def fell_back(self, step: int) -> Standing:
        """The same, when a crash has just taken it back to a step."""
        return replace(self, fallbacks=(*self.fallbacks[1 - MOST_FALLBACKS :], (step, self.now())))

    def now(self) -> datetime:
        """The time; behind that of the last fallback also where the clock was set back since."""
        return max([utc_now(), *(at + _TICK for _, at in self.fallbacks)])


def _plan(blueprint: Blueprint, kept: Mapping[str, Any]) -> Plan:
    said, first = kept["optimizer"], blueprint.plan
    settings = Settings(find(said["name"]), first.settings.groups, said["base"], said["own"])
    changed = {name: kept["policy"][name] for name in _CHANGED_BY_PATCH}
    # Read as a create body would be: what is null there is none.
    now = read_description({**kept["description"], **{n: v for n, v in changed.items() if v is not None}})
    policy = replace(
        first.policy,
        nonfinite=now.nonfinite,
        clip=now.clip if changed["clip"] is not None else None,
        schedule=now.schedule if changed["schedule"] is not None else None,
        wire=now.wire,
        schedule_from=kept["policy"]["schedule_from"],
    )
    return Plan(blueprint.layout, settings, policy)


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _plain(own: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {group: dict(values) for group, values in own.items()}
