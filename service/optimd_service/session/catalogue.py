"""The optimizers that a session can have, described once for all callers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from optimd_service.optim.catalogue import OPTIMIZERS, describe


@cache
def catalogue() -> Mapping[str, dict[str, Any]]:
    """Name → description, as `GET /v1/optimizers` gives it."""
    return {name: describe(optimizer) for name, optimizer in OPTIMIZERS.items()}
