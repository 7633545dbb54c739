"""/healthz and /readyz: for whatever watches the server."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.media import JSON
from optimd_service.api.services import Provided
from optimd_service.errors import HistoryUnavailable
from optimd_service.wire.json import write_json

router = APIRouter(tags=["server"])


@router.get("/healthz", **reference.HEALTH)
async def healthz() -> Response:
    """The process answers."""
    return Response(write_json({"status": "alive"}), media_type=JSON)


@router.get("/readyz", **reference.READY)
async def readyz(services: Provided) -> Response:
    """The server takes work, its history is being recorded, and Redis answers, if there is one."""
    history = asdict(services.history.health())
    if history["failing"]:
        raise HistoryUnavailable("The history database does not answer; steps go on, and their rows wait.", **history)
    warnings = await services.sessions.redis_warnings()
    redis = None if warnings is None else {"warnings": warnings}
    body = {"status": "ready", "sessions": len(services.sessions), "history": history, "redis": redis}
    return Response(write_json(body), media_type=JSON)
