"""GET /v1/optimizers: what there is to choose from."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.media import JSON
from optimd_service.errors import OptimizerNotFound
from optimd_service.session.catalogue import REFUSED, catalogue
from optimd_service.wire.json import write_json

router = APIRouter(prefix="/v1/optimizers", tags=["optimizers"])


@router.get("", **reference.OPTIMIZERS)
async def list_optimizers() -> Response:
    """Every optimizer, with the JSON Schema of its hyperparameters."""
    return Response(write_json({"optimizers": list(catalogue().values())}), media_type=JSON)


@router.get("/{name}", **reference.OPTIMIZER)
async def show_optimizer(name: str) -> Response:
    """One optimizer."""
    found = catalogue().get(name)
    if found is None:
        reason = REFUSED.get(name.lower())
        detail = f"it {reason}" if reason else "GET /v1/optimizers lists them"
        raise OptimizerNotFound(f"There is no optimizer {name[:40]!r} here: {detail}.")
    return Response(write_json(found), media_type=JSON)
