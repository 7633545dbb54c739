"""POST /v1/advice: which optimizer for a task, with which settings, and why."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.media import JSON, kind_of_body
from optimd_service.api.services import Provided, Services
from optimd_service.session.advice import advice
from optimd_service.wire.json import read_object, write_json
from optimd_service.wire.received import receive_json

router = APIRouter(prefix="/v1/advice", tags=["optimizers"])


@router.post("", **reference.ADVICE)
async def advise(request: Request, services: Provided) -> Response:
    """Recommend optimizers for a task."""
    kind_of_body(request.headers.get("content-type"), supported=("json",))
    body = services.body(request.scope, request.receive)
    received = await receive_json(body, tensors="params")
    return Response(await _answer(received.text, services), media_type=JSON)


async def _answer(text: bytearray, services: Services) -> bytes:
    return await services.sessions.arithmetic.small.run(lambda: write_json(advice(read_object(text))))
