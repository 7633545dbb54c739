"""Doing again what a record says was done."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from optimd_service.optim.update import Workplace
from optimd_service.session.kept import KeptPush
from optimd_service.session.lineage import ROLLED_BACK
from optimd_service.session.push import PUSH, Push
from optimd_service.session.replaced import REPLACED, replace_again
from optimd_service.session.standing import Standing
from optimd_service.store.contract import StoredState
from optimd_service.store.failpoints import failpoint
from optimd_service.types import Receipt, StepRow, Version

CHANGED = "changed"
"""The kind of a record that changes nothing but the session's standing."""

log = logging.getLogger("optimd")


def replay(
    session: str,
    standing: Standing,
    state: StoredState,
    place: Workplace,
    kind: str,
    fields: Mapping[str, Any],
    payload: memoryview,
) -> Standing:
    """Do to ``state`` what a record says, and return how the session stands then.

    Args:
      state: as the record before left it; keeps no records now.
      payload: may be worked on.

    Raises: ValueError for a record that cannot be done again.
    """
    failpoint("session.replay")
    if kind == PUSH:
        standing = _push(session, standing, state, place, fields, payload)
    elif kind == REPLACED:
        replace_again(state, fields, payload)
    elif kind in {CHANGED, ROLLED_BACK}:
        state.commit(state.begin({}), Version(*fields["version"]), {})
    else:
        raise ValueError(f"records of kind {kind!r} are of another release")
    said = fields.get("standing")
    return standing if said is None else Standing.from_json(said)


def _push(
    session: str,
    standing: Standing,
    state: StoredState,
    place: Workplace,
    fields: Mapping[str, Any],
    payload: memoryview,
) -> Standing:
    kept = KeptPush(fields, payload)
    incoming = None if standing.plan.policy.on_device else kept
    push = Push(session, kept, fields["key"], state, standing.plan, incoming, at=datetime.fromisoformat(fields["at"]))
    again, first = push.apply(place), receipt_of(fields)
    if again._replace(durable_step=first.durable_step) != first:
        log.warning("session %s: step %d came out otherwise when it was done again", session, first.step)
    skipped = standing.skipped + (first.outcome == "skipped_nonfinite")
    return standing if skipped == standing.skipped else replace(standing, skipped=skipped)


def receipt_of(fields: Mapping[str, Any]) -> Receipt:
    """The receipt in a push's record."""
    return Receipt(**fields["receipt"])


def row_of(fields: Mapping[str, Any]) -> StepRow | None:
    """What history says of a push's record; None of one that made no step."""
    receipt, facts = receipt_of(fields), fields["facts"]
    if receipt.outcome != "applied":
        return None
    at = datetime.fromisoformat(fields["at"])
    return StepRow(receipt, at, facts["num_examples"], facts["worker"], facts["hyperparameters"])
