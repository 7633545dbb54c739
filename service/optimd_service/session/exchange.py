"""Another optimizer for a session that is under way: what it carries over, and what is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from optimd_service.errors import InvalidField
from optimd_service.optim.catalogue import find
from optimd_service.optim.state_dtype import require_state_dtype
from optimd_service.session.description import OptimizerExchange
from optimd_service.session.moments import read_buffer, write_buffer_
from optimd_service.session.plan import Plan, numbers_of
from optimd_service.session.settings import check_tensors
from optimd_service.store.contract import Working


@dataclass(frozen=True)
class Exchange:
    """A session's plan before and after, and how its state goes over.

    Attributes:
      carried: buffer of the new optimizer → buffer of the old whose elements it takes.
      keeps_count: all of the new optimizer's moments come from the old one's, and have seen as many updates.
      lost: hyperparameters of groups that the new optimizer does not have, as `group.name`.
    """

    before: Plan
    after: Plan
    carried: Mapping[str, str]
    keeps_count: bool
    lost: tuple[str, ...]

    @property
    def dropped(self) -> list[str]:
        """Buffers of the old optimizer that nothing comes of."""
        return sorted(self.before.pieces.keys() - set(self.carried.values()))

    def stays(self, name: str) -> bool:
        """Whether a buffer of the new optimizer is the old one's, where it lies."""
        return self.carried.get(name) == name

    def moving(self, working: Working) -> dict[str, torch.Tensor]:
        """Copies of the old buffers that change places."""
        moved = {
            source for name, source in self.carried.items() if not self.stays(name) and self._is_kept(source, working)
        }
        return {source: read_buffer(working, self.before, source).clone() for source in moved}

    def _is_kept(self, source: str, working: Working) -> bool:
        """Whether there is such a buffer by now: one that a new schedule needs comes with the first push under it."""
        return self.before.stored(source).keys() <= working.state.keys()

    def report(self) -> dict[str, Any]:
        """What a caller is told."""
        return {
            "optimizer": self.after.settings.optimizer.name,
            "carried": dict(self.carried),
            "dropped": self.dropped,
            "dropped_hyperparameters": list(self.lost),
        }


def exchange(plan: Plan, wanted: OptimizerExchange) -> Exchange:
    """Check an exchange.

    Buffers of one name and size go over together or not at all, with the numbers that belong to them: half of Adam's
    moments would make its next steps far too large. What ``carry`` asks for goes over in any case.

    Raises: InvalidField, InvalidHyperparameter.
    """
    settings, lost = plan.settings.of_another(find(wanted.name), wanted.hyperparameters)
    check_tensors(settings, plan.layout)
    require_state_dtype(settings.optimizer, plan.policy.state_dtype, plan.layout.dtype)
    after = replace(plan, settings=settings)
    same = {
        name: name for name in after.pieces if _fits(plan, name, after, name) and _means_the_same(plan, name, after)
    }
    remembers = settings.optimizer.numbers.keys() <= plan.settings.optimizer.numbers.keys()
    whole = remembers and same.keys() == after.pieces.keys()
    for new, old in wanted.carry.items():
        if not _fits(plan, old, after, new):
            raise InvalidField(
                f"{new!r} of {settings.optimizer.name} cannot begin as {old!r} of {plan.settings.optimizer.name}: "
                f"there are {_listed(after)} to begin from {_listed(plan)}.",
                field=f"carry.{new[:80]}",
            )
    carried = (same if whole else {}) | wanted.carry
    return Exchange(plan, after, carried, remembers and carried.keys() == after.pieces.keys(), tuple(lost))


def _fits(before: Plan, old: str, after: Plan, new: str) -> bool:
    return old in before.pieces and new in after.pieces and before.pieces[old].spans == after.pieces[new].spans


def _means_the_same(before: Plan, name: str, after: Plan) -> bool:
    old, new = before.settings.optimizer, after.settings.optimizer
    return old.name == new.name or name not in old.own_scale | new.own_scale


def _listed(plan: Plan) -> str:
    return ", ".join(plan.pieces) or "no buffers"


def exchange_(working: Working, change: Exchange, old: Mapping[str, torch.Tensor]) -> None:
    """Put the new optimizer's state in place of the old one's.

    Args:
      working: with the buffers of the new optimizer.
      old: buffer of the old optimizer → its elements, where they change places; nobody else writes to them.
    """
    after = change.after
    for name in after.pieces:
        if not change.stays(name):
            for tensor in after.stored(name):
                working.state[tensor].zero_()
    for name, source in change.carried.items():
        if source in old and not change.stays(name):
            write_buffer_(working, after, name, old[source])
    for tensor in working.state.keys() - after.buffers.keys():
        del working.state[tensor]
    working.started = {(g, name) for name, b in change.carried.items() for g, was in working.started if was == b}
    working.updates = working.updates if change.keeps_count else 0
    if not (change.keeps_count and after.settings.optimizer.numbers):
        for group in after.layout.groups:
            working.numbers.pop(numbers_of(group), None)
