"""Replies in JSON that may be long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from optimd_service.api.media import JSON
from optimd_service.api.services import Services
from optimd_service.wire.json import write_json


async def written(services: Services, document: Callable[[], dict[str, Any]]) -> Response:
    """Put a document together and write it in a thread: ten thousand rows, or as many tensors, take a while."""
    return await services.sessions.arithmetic.large.run(lambda: Response(write_json(document()), media_type=JSON))
