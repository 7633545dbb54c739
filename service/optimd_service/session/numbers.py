"""What an optimizer remembers of groups beside its buffers, as it comes in with a state."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import torch

from optimd_service.errors import InvalidField, MalformedJson
from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.update import Here, update_
from optimd_service.session.plan import Plan
from optimd_service.wire.json import read_object


def read_numbers(metadata: Mapping[str, str], updates: int, plan: Plan) -> Mapping[str, Numbers]:
    """Group → the numbers that a state body says of it.

    Args:
      updates: how many updates the state has seen.

    Raises: InvalidField, also for numbers that the next update could not go on from.
    """
    known = plan.settings.optimizer.numbers
    try:
        given = read_object(metadata.get("numbers", "{}"))
    except MalformedJson as error:
        raise InvalidField(f"In `__metadata__`, numbers must be JSON text: {error.detail}", field="numbers") from None
    for group, of_group in given.items():
        if group not in plan.layout.groups or not isinstance(of_group, dict) or not of_group.keys() <= known.keys():
            raise InvalidField(
                f"`numbers` maps the session's groups to {', '.join(known) or 'nothing'}; look at {group[:80]!r}.",
                field="numbers",
            )
        if not all(type(value) in {int, float} and abs(value) <= sys.float_info.max for value in of_group.values()):
            raise InvalidField(f"`numbers` of {group!r} must be finite numbers.", field="numbers")
    numbers = {group: {name: float(value) for name, value in of_group.items()} for group, of_group in given.items()}
    for group, of_group in numbers.items():
        _try_out(group, {**known, **of_group}, updates, plan)
    return numbers


def _try_out(group: str, numbers: Numbers, updates: int, plan: Plan) -> None:
    """Take one update with a single weight; a nonsensical number shows as an error or as a weight that is none."""
    optimizer, hyper = plan.settings.optimizer, plan.settings.resolved[group]
    if optimizer.shapes is not None:
        return
    weight, grad = torch.ones(1), torch.ones(1)
    state = {name: torch.ones(1) for name in optimizer.state(hyper)}
    try:
        update_(optimizer, FlatGroup(weight, grad, state, updates + 1, numbers=dict(numbers)), hyper, Here())
    except (ArithmeticError, ValueError):
        weight.fill_(math.nan)
    if not bool(weight.isfinite()):
        raise InvalidField(f"{optimizer.name} cannot go on from the `numbers` of {group!r}.", field="numbers")
