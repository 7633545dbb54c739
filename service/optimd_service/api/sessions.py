"""/v1/sessions: create, list, inspect, change, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.media import JSON, kind_of_body
from optimd_service.api.services import Provided, Services
from optimd_service.api.written import written
from optimd_service.session.cost import cost
from optimd_service.session.creation import Fill, from_header, from_json
from optimd_service.session.description import read_change
from optimd_service.session.representation import DETAILS, progress, remembered, represent
from optimd_service.session.session import Session
from optimd_service.types import SessionRow
from optimd_service.wire.body import Body
from optimd_service.wire.json import read_object, write_json
from optimd_service.wire.received import receive_header, receive_json, receive_tensors

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
costs = APIRouter(prefix="/v1/cost", tags=["sessions"])


@router.post("", **reference.CREATE)
async def create(request: Request, services: Provided) -> Response:
    """Create a session from its description, with weights inline, behind it, or initialised here."""
    body = services.body(request.scope, request.receive)
    if kind_of_body(request.headers.get("content-type")) == "json":
        session = await _create_from_json(body, services)
    else:
        session = await _create_from_safetensors(body, services)
    reply = await represented(session, 201)
    reply.headers["Location"] = f"/v1/sessions/{session.id}"
    return reply


async def _create_from_json(body: Body, services: Services) -> Session:
    received = await receive_json(body, tensors="params")
    blueprint, fill = await services.sessions.arithmetic.large.run(from_json, received.text)
    if fill is None:
        return await services.sessions.create(blueprint)

    async def arrive(_: torch.Tensor) -> Fill:
        return fill

    return await services.sessions.create(blueprint, arrive)


async def _create_from_safetensors(body: Body, services: Services) -> Session:
    raw = await receive_header(body)
    blueprint, landing = await services.sessions.arithmetic.large.run(from_header, raw)

    async def arrive(flat: torch.Tensor) -> Fill:
        received = await receive_tensors(body, raw, (landing, {}), flat, run=services.sessions.arithmetic.large.run)
        return lambda flat: received.land_(flat, blueprint.layout)

    return await services.sessions.create(blueprint, arrive)


@costs.post("", **reference.COST)
async def ask_cost(request: Request, services: Provided) -> Response:
    """What a session of this description would hold in memory; nothing is created."""
    kind_of_body(request.headers.get("content-type"), supported=("json",))
    received = await receive_json(services.body(request.scope, request.receive), tensors="params")
    return await written(services, lambda: cost(from_json(received.text)[0]))


@router.get("", **reference.LIST)
async def list_sessions(
    services: Provided,
    after: Annotated[str | None, Query(max_length=64, description="The `next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most of a page.")] = 100,
    status: Annotated[Literal["live", "lost", "all"], Query(description="Live here, lost with their server.")] = "live",
) -> Response:
    """Sessions, oldest first, without their tensors."""
    wanted = None if status == "all" else status
    rows = await services.history.sessions(after=after, limit=limit + 1, status=wanted)
    newest = await services.history.newest_steps([row.id for row in rows if services.sessions.find(row.id) is None])
    more = rows[limit - 1].id if len(rows) > limit else None

    def page() -> dict[str, Any]:
        listed = [_listed(row, services.sessions.find(row.id), newest) for row in rows[:limit]]
        return {"sessions": listed, "next": more}

    return await written(services, page)


def _listed(row: SessionRow, session: Session | None, newest: Mapping[str, int]) -> dict[str, Any]:
    now = remembered(row, newest.get(row.id, 0)) if session is None else {**row.spec, **progress(session)}
    return {name: value for name, value in now.items() if name not in DETAILS}


@router.get("/{session_id}", **reference.INSPECT)
async def inspect(session_id: str, services: Provided) -> Response:
    """One session; a lost one as history remembers it."""
    session = await services.sessions.awaited(session_id)
    if session is not None:
        return await represented(session)
    row = await services.history.session(session_id)
    if row is None:
        raise services.sessions.unknown(session_id)
    newest = await services.history.newest_steps([session_id])
    return await written(services, lambda: remembered(row, newest.get(session_id, 0)))


@router.patch("/{session_id}", **reference.CHANGE)
async def change(session_id: str, request: Request, services: Provided) -> Response:
    """Change name, policy or hyperparameters for all later steps."""
    kind_of_body(request.headers.get("content-type"), supported=("json",))
    session = await services.sessions.get(session_id)
    body = services.body(request.scope, request.receive)
    received = await receive_json(body, tensors="params")
    described = await session.lane.run(lambda: read_change(read_object(received.text)))
    await services.sessions.change(session, described)
    return await represented(session)


@router.delete("/{session_id}", **reference.DELETE)
async def delete(session_id: str, services: Provided) -> Response:
    """Delete a session, its weights and its history."""
    await services.sessions.delete(session_id)
    return Response(status_code=204)


async def represented(session: Session, status: int = 200) -> Response:
    """The whole of a session."""

    # In a thread: a session may have a hundred thousand tensors.
    def reply() -> Response:
        document = represent(session)
        # Its own: the session may have moved by the time that it is written.
        return Response(write_json(document), status, {"ETag": f'"{document["etag"]}"'}, JSON)

    return await session.lane.run(reply)
