"""The hyperparameters of a session, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optimd_service.errors import InvalidField, InvalidHyperparameter
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.optimizer import Optimizer
from optimd_service.types import Layout

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """Base values, each group's own on top of them, and what they come to.

    Attributes:
      base: what was said for the whole session.
      own: group name → what was said for that group alone.
      said_in: the field of the request that said it last, for errors; empty for a description.
      resolved: group name → its full set, in layout order.
      session_wide: the full set of a group without values of its own.
    """

    optimizer: Optimizer[Any]
    groups: tuple[str, ...]
    base: Values
    own: Mapping[str, Values]
    said_in: str = ""
    resolved: Mapping[str, Hyperparameters] = field(init=False)
    session_wide: Hyperparameters = field(init=False)

    def __post_init__(self) -> None:
        """Raises: InvalidHyperparameter naming the field."""
        session_wide = self.optimizer.parse(self.base, where=self.said_in or "optimizer")
        resolved = {group: self._of_group(group) if self.own.get(group) else session_wide for group in self.groups}
        object.__setattr__(self, "session_wide", session_wide)
        object.__setattr__(self, "resolved", resolved)

    def _of_group(self, group: str) -> Hyperparameters:
        hyper: Hyperparameters = self.optimizer.parse(
            {**self.base, **self.own[group]}, where=f"{self.said_in}.groups.{group}".lstrip(".")
        )
        return hyper

    def changed(self, base: Values, own: Mapping[str, Values], *, said_in: str = "") -> Settings:
        """The settings with some values replaced.

        Raises: InvalidField for an unknown group; InvalidHyperparameter for what the optimizer does not take, and for
        hyperparameters that decide which buffers exist, since those are fixed at creation.
        """
        for group in own:
            if group not in self.groups:
                names = ", ".join(self.groups[:20])
                raise InvalidField(f"There is no group {group[:80]!r}; the session has {names}.", field="groups")
        for values in (base, *own.values()):
            self._refuse_structural(values)
        merged = {group: {**self.own.get(group, {}), **own.get(group, {})} for group in self.groups}
        return replace(self, base={**self.base, **base}, own=merged, said_in=said_in)

    def of_another(self, optimizer: Optimizer[Any], base: Values) -> tuple[Settings, list[str]]:
        """The settings of another optimizer; groups keep what it has too, and what they lose is named.

        Raises: InvalidHyperparameter.
        """
        known = optimizer.hyperparameters.model_fields.keys()
        own = {group: {n: v for n, v in values.items() if n in known} for group, values in self.own.items()}
        lost = [f"{group}.{name}" for group, values in self.own.items() for name in values if name not in known]
        return Settings(optimizer, self.groups, base, own), lost

    def _refuse_structural(self, values: Values) -> None:
        for name in self.optimizer.hyperparameters.structural() & values.keys():
            raise InvalidHyperparameter(
                f"{name} decides which state exists and is fixed when the session is created; create a new session.",
                field=name,
            )


def check_tensors(settings: Settings, layout: Layout) -> None:
    """Refuse tensors that the optimizer cannot step. Raises: InvalidField."""
    if settings.optimizer.check is not None:
        for group, hyper in settings.resolved.items():
            shapes = {t.name: t.shape for t in layout.trained.tensors if t.group == group}
            settings.optimizer.check(hyper, shapes)


def group_overrides(value: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Split a push's ``hyperparameters``, {"lr": …, "groups": {"name": {…}}}, into base and own values.

    Raises: InvalidField.
    """
    if not isinstance(value, dict):
        raise InvalidField("`hyperparameters` must be an object.", field="hyperparameters")
    base = dict(value)
    own = base.pop("groups", {})
    if not isinstance(own, dict) or not all(isinstance(values, dict) for values in own.values()):
        raise InvalidField("`hyperparameters.groups` must map group names to objects.", field="hyperparameters.groups")
    return base, own


def own_values(changes: Sequence[tuple[str, Values]]) -> dict[str, Values]:
    """Group changes as a map. Raises: InvalidField when one group is named twice."""
    own = dict(changes)
    if len(own) < len(changes):
        raise InvalidField("`groups` names one group twice; say it once.", field="groups")
    return own
