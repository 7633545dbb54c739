"""What a push says of itself beside its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from optimd_service.errors import InvalidField

MAX_WORKER = 200
_FIELDS = frozenset({"loss", "num_examples", "worker", "hyperparameters"})


class StepFacts(NamedTuple):
    """Recorded with the step; ``hyperparameters`` hold for it alone.

    Attributes:
      loss: in the unit of the user's own loss.
      num_examples: how many examples the gradient is over.
      worker: who computed it.
    """

    loss: float | None = None
    num_examples: int | None = None
    worker: str | None = None
    hyperparameters: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``read`` would read again."""
        return self._asdict()

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> StepFacts:
        """Check the fields of a push. Raises: InvalidField naming the first that is wrong."""
        refuse_unknown(fields, _FIELDS)
        return cls(
            _loss(fields.get("loss")),
            _count(fields.get("num_examples")),
            _worker(fields.get("worker")),
            fields.get("hyperparameters"),
        )


def refuse_unknown(fields: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise InvalidField for the first field that is not ``known``."""
    for name in fields:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise InvalidField(f"{name[:80]!r} is not a field of this call; it has {listed}.", field=name[:80])


def _loss(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in {int, float} or abs(value) > 1.7e308 or not math.isfinite(value):
        raise InvalidField("`loss` must be a finite number; leave it out when there is none.", field="loss")
    return float(value)


def _count(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise InvalidField("`num_examples` must be a whole number from 0 to 2⁶³ − 1.", field="num_examples")
    return value


def _worker(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_WORKER or not value.isprintable():
        raise InvalidField(f"`worker` must be at most {MAX_WORKER} printable characters.", field="worker")
    return value
