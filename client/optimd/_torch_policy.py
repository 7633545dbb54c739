"""What a session does around the optimizer's step, as a program asks for it and as a session has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimd.models import SessionInfo
from optimd.session import Session

# The rest is fixed when a session is created.
CHANGEABLE = frozenset({"nonfinite", "schedule", "clip", "wire"})


def given(**policy: Any) -> dict[str, Any]:
    """What of a policy is not None."""
    return {name: value for name, value in policy.items() if value is not None}


def in_server_words(wire: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Dtypes as a session names them, whose names are taken in either case."""
    if wire is None:
        return None
    return {name: value.upper() if isinstance(value, str) else value for name, value in wire.items()}


def differing(policy: Mapping[str, Any], info: SessionInfo) -> dict[str, Any]:
    """What of ``policy`` an existing session does otherwise, and can be told to do.

    What the session has beyond it, such as defaults that it filled in, is no difference: a program that is run again
    with the same arguments must not begin its schedule anew.

    Raises: ValueError for what is fixed.
    """
    held: Mapping[str, Any] = dict(info)
    other = {name: value for name, value in policy.items() if not _holds(held.get(name), value)}
    for name in other.keys() - CHANGEABLE:
        raise ValueError(
            f"the session {info['id']} has {name} {held.get(name)!r}, not {policy[name]!r}, and it is fixed when a "
            "session is created: leave it out"
        )
    return other


def _holds(held: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(held, Mapping) and all(name in held and _holds(held[name], wanted[name]) for name in wanted)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return isinstance(held, Sequence) and len(held) == len(wanted) and all(map(_holds, held, wanted))
    return bool(held == wanted)


def first_scale(info: SessionInfo) -> float:
    """What the first loss is multiplied by; 1 without loss scaling."""
    spec = info.get("loss_scale")
    return 1.0 if spec is None else float(spec["init_scale"])


def scale_of(session: Session) -> float:
    """What the next loss of a session under way is multiplied by; 1 without loss scaling."""
    return session.info["loss_scale_now"] or 1.0
