"""GET /v1/sessions/{id}/steps and /events: what was recorded."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.media import JSON
from optimd_service.api.services import Provided
from optimd_service.api.step_reply import receipt_fields
from optimd_service.api.written import written
from optimd_service.errors import StepNotFound
from optimd_service.session.representation import iso
from optimd_service.types import EventRow, StepRow
from optimd_service.wire.json import write_json

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["history"])

LARGEST = 2**63 - 1
After = Annotated[int, Query(ge=0, le=LARGEST, description="Rows beyond this one.")]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Most rows of a page.")]
Superseded = Annotated[
    bool,
    Query(description="In place of its steps those that the session no longer stands on, as they were rolled back."),
]


@router.get("/steps", **reference.STEPS)
async def list_steps(
    session_id: str, services: Provided, *, after: After = 0, limit: Limit = 1000, superseded: Superseded = False
) -> Response:
    """The steps recorded, ascending; or those that were rolled back, as they were."""
    await services.sessions.known(session_id)
    if superseded:
        left = await services.history.superseded_steps(session_id, after=after, limit=limit + 1)
        last = left[limit - 1][0] if len(left) > limit else None
        return await written(services, lambda: {"steps": [_step(row) for _, row in left[:limit]], "next": last})
    rows = await services.history.steps(session_id, after=after, limit=limit + 1)
    more = rows[limit - 1].receipt.step if len(rows) > limit else None
    return await written(services, lambda: {"steps": [_step(row) for row in rows[:limit]], "next": more})


@router.get("/steps/{step}", **reference.STEP)
async def one_step(session_id: str, step: Annotated[int, Path(ge=1, le=LARGEST)], services: Provided) -> Response:
    """One step."""
    await services.sessions.known(session_id)
    row = await services.history.one_step(session_id, step)
    if row is None:
        raise StepNotFound(f"The session has no step {step}; GET /v1/sessions/{session_id}/steps lists them.")
    return Response(write_json(_step(row)), media_type=JSON)


@router.get("/events", **reference.EVENTS)
async def list_events(session_id: str, services: Provided, after: After = 0, limit: Limit = 1000) -> Response:
    """What happened between steps, in order."""
    await services.sessions.known(session_id)
    rows = await services.history.events(session_id, after=after, limit=limit + 1)
    more = rows[limit - 1].id if len(rows) > limit else None
    return await written(services, lambda: {"events": [_event(row) for row in rows[:limit]], "next": more})


def _step(row: StepRow) -> dict[str, Any]:
    return {
        **receipt_fields(row.receipt),
        "num_examples": row.num_examples,
        "worker": row.worker,
        "hyperparameters": row.hyperparameters,
        "committed_at": iso(row.committed_at),
    }


def _event(row: EventRow) -> dict[str, Any]:
    return {"id": row.id, "kind": row.kind, "step": row.step, "at": iso(row.at), "detail": row.detail}
