"""The door in front of the application: small steps walk straight in."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from optimd_service.api.problems import answer
from optimd_service.api.services import services_of
from optimd_service.api.steps import PUSH_ENDPOINT
from optimd_service.wire.disconnected import Disconnected

_BEFORE, _AFTER = "/v1/sessions/", "/steps"


class Front:
    """Hands pushes to their endpoint, and everything else to the application.

    A push passes eight layers of middleware otherwise, none of which has anything to do for it; they cost about as much
    as the update of a small session. The application serves the same route to the same end.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def stop_waiting(self) -> None:
        """Answer everybody who waits for a newer version, since the server ends."""
        services_of({"app": self.app}).sessions.stop_waiting()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        session_id = _pushed_to(scope)
        if session_id is None:
            await self.app(scope, receive, send)
            return
        scope["app"] = self.app
        scope["path_params"] = {"session_id": session_id}
        try:
            await PUSH_ENDPOINT(scope, receive, send)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001  the last door: whatever comes is answered
            await answer(error)(scope, receive, send)


def _pushed_to(scope: Scope) -> str | None:
    """The session's id when this is a push."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not (path.startswith(_BEFORE) and path.endswith(_AFTER)):
        return None
    session_id = path[len(_BEFORE) : -len(_AFTER)]
    return session_id if session_id and "/" not in session_id else None
