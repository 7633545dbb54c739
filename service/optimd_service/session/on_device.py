"""What a session can do whose weights lie in the memory of a device, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from optimd_service.errors import InvalidField
from optimd_service.optim.clipping import ClipAdaptive
from optimd_service.optim.on_device import STEPS
from optimd_service.optim.optimizer import Optimizer
from optimd_service.session.policy import Policy


class _Refusal(NamedTuple):
    field: str
    advice: str


def require_on_device(optimizer: Optimizer[Any], policy: Policy) -> None:
    """Refuse what only the host computes. Raises: InvalidField, naming the first such field."""
    for field, advice in _refusals(optimizer, policy):
        raise InvalidField(
            f"On {policy.device} {advice}, or create the session with storage.device cpu, which does it.", field=field
        )


def _refusals(optimizer: Optimizer[Any], policy: Policy) -> Iterator[_Refusal]:
    if optimizer.name not in STEPS:
        yield _Refusal("optimizer.name", f"there is no {optimizer.name}: take one of {', '.join(STEPS)}")
    if policy.state_dtype != "f32":
        yield _Refusal("state_dtype", f"state is not kept in {policy.state_dtype}: send state_dtype f32")
    if policy.centralize:
        yield _Refusal("centralize", "gradients are not centralised: leave `centralize` out")
    if isinstance(policy.clip, ClipAdaptive):
        yield _Refusal("clip.agc", "rows are not clipped by `agc`: clip by max_norm or clip_value")
    if policy.wire.difference:
        yield _Refusal("wire.difference", "no difference is made: leave `difference` out")
