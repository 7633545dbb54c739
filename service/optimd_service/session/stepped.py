"""What a push led to."""

from __future__ import annotations

from typing import NamedTuple

from optimd_service.store.contract import Snapshot
from optimd_service.types import Receipt


class Stepped(NamedTuple):
    """A receipt, and the weights that the session holds now; whoever is given them releases them."""

    receipt: Receipt
    snapshot: Snapshot
