"""Checkpoints, rollback, forks and what-ifs of a session."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.headers import if_match
from optimd_service.api.media import JSON, kind_of_body
from optimd_service.api.services import Provided, Services
from optimd_service.api.sessions import represented
from optimd_service.api.written import written
from optimd_service.session import time_travel
from optimd_service.session.branching import read_fork
from optimd_service.session.moment import read_label, read_rollback
from optimd_service.session.representation import represent_checkpoint, represent_kept
from optimd_service.wire.json import read_object, write_json
from optimd_service.wire.landing import HeaderReader
from optimd_service.wire.received import Received, receive_json, receive_safetensors

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["time travel"])


@router.post("/checkpoints", **reference.CHECKPOINT)
async def checkpoint(session_id: str, request: Request, services: Provided) -> Response:
    """Keep the session as it stands now."""
    session = await services.sessions.get(session_id)
    label = read_label(await _fields(request, services))
    info = await time_travel.checkpoint(session, label)
    return Response(write_json(represent_checkpoint(info)), 201, {"ETag": f'"{info.version.etag}"'}, JSON)


@router.get("/checkpoints", **reference.CHECKPOINTS)
async def checkpoints(session_id: str, services: Provided) -> Response:
    """What the session can go back to."""
    kept = await time_travel.kept(await services.sessions.get(session_id))
    return Response(write_json(represent_kept(kept)), media_type=JSON)


@router.delete("/checkpoints/{label}", **reference.DELETE_CHECKPOINT)
async def remove_checkpoint(
    session_id: str, label: Annotated[str, Path(max_length=100)], services: Provided
) -> Response:
    """Remove the checkpoint of a label."""
    await time_travel.remove_checkpoint(await services.sessions.get(session_id), label)
    return Response(status_code=204)


@router.post("/rollback", **reference.ROLLBACK)
async def roll_back(session_id: str, request: Request, services: Provided) -> Response:
    """Return to where the session stood."""
    session = await services.sessions.get(session_id)
    moment = read_rollback(await _fields(request, services))
    returned = await services.sessions.roll_back(session, moment, if_match(request.scope))
    step, etag = returned.version.step, returned.version.etag
    report = {"step": step, "etag": etag, "left": returned.before.etag}
    return Response(write_json(report), 200, {"ETag": f'"{etag}"'}, JSON)


@router.post("/fork", **reference.FORK)
async def fork(session_id: str, request: Request, services: Provided) -> Response:
    """Make a session that begins where this one stands, or stood, perhaps with other settings."""
    session = await services.sessions.get(session_id)
    branched = await services.sessions.fork(session, read_fork(await _fields(request, services)))
    reply = await represented(branched, 201)
    reply.headers["Location"] = f"/v1/sessions/{branched.id}"
    return reply


@router.post("/what-if", **reference.WHAT_IF)
async def what_if(session_id: str, request: Request, services: Provided) -> Response:
    """Say what one gradient would do under several settings; nothing is done."""
    session = await services.sessions.get(session_id)
    body = services.body(request.scope, request.receive)
    received: Received
    if kind_of_body(request.headers.get("content-type")) == "json":
        received = await receive_json(body, tensors="grads")
    else:
        received = await receive_safetensors(body, HeaderReader(session.plan.pushes[0]), None, run=session.lane.run)
    tried = await services.sessions.what_if(session, received)
    return await written(services, lambda: tried)


async def _fields(request: Request, services: Services) -> dict[str, Any]:
    """A body in JSON; an empty one is an empty object."""
    received = await receive_json(services.body(request.scope, request.receive), tensors="params")
    if not received.text:
        return {}
    kind_of_body(request.headers.get("content-type"), supported=("json",))
    return await services.sessions.arithmetic.large.run(read_object, received.text)
