"""Every call that is not on one session, without IO."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import quote

from optimd._core import SessionCore
from optimd._description import Description
from optimd._documents import Page, json_text, query, read_json, read_page
from optimd._exchange import JSON, SAFETENSORS, Body, Operation, Request
from optimd._retry import Retry, ask
from optimd._safetensors import encode
from optimd._time_travel import session_path
from optimd.errors import MalformedReply
from optimd.models import Advice, CostInfo, ModelKind, OptimizerInfo, SessionInfo, SessionStatus, TaskFields


class ServiceCore:
    """The calls of a server as a whole.

    Args:
      cuts_bodies: whether the transport carries a large body over two connections.
    """

    def __init__(self, retry: Retry, *, cuts_bodies: bool = False) -> None:
        self._retry = retry
        self._cuts_bodies = cuts_bodies

    def create_session(self, description: Description) -> Operation[SessionCore]:
        session = json_text(description.document)
        body: Body
        if description.params is None:
            body, kind = [session], JSON
        else:
            body, kind = encode(description.params, {"session": bytes(session).decode()}), SAFETENSORS
        headers = {"content-type": kind, "accept": JSON}
        return (yield from self._session(Request("POST", "/v1/sessions", headers, body, repeatable=False)))

    def cost(self, description: Description) -> Operation[CostInfo]:
        body = [json_text(description.without_weights())]
        request = Request("POST", "/v1/cost", {"content-type": JSON, "accept": JSON}, body)
        return cast("CostInfo", read_json((yield from ask(request, self._retry))))

    def session(self, session_id: str) -> Operation[SessionCore]:
        return (yield from self._session(_get(session_path(session_id))))

    def sessions(self, status: SessionStatus, after: Any, limit: int | None) -> Operation[Page[SessionInfo]]:
        target = "/v1/sessions" + query(after=after or None, limit=limit and min(limit, 1000), status=status)
        return read_page((yield from ask(_get(target), self._retry)), "sessions")

    def optimizers(self) -> Operation[list[OptimizerInfo]]:
        page: Page[OptimizerInfo] = read_page((yield from ask(_get("/v1/optimizers"), self._retry)), "optimizers")
        return page.rows

    def optimizer(self, name: str) -> Operation[OptimizerInfo]:
        target = "/v1/optimizers/" + quote(name, safe="")
        return cast("OptimizerInfo", read_json((yield from ask(_get(target), self._retry))))

    def advice(self, model: ModelKind, parameters: int, task: TaskFields) -> Operation[Advice]:
        body = [json_text({"model": model, "parameters": parameters, **task})]
        request = Request("POST", "/v1/advice", {"content-type": JSON, "accept": JSON}, body)
        return cast("Advice", read_json((yield from ask(request, self._retry))))

    def health(self) -> Operation[dict[str, Any]]:
        document: dict[str, Any] = read_json((yield from ask(_get("/readyz"), Retry(0))))
        return document

    def _session(self, request: Request) -> Operation[SessionCore]:
        info = read_json((yield from ask(request, self._retry)))
        if not isinstance(info.get("id"), str):
            raise MalformedReply("The reply describes no session.")
        return SessionCore(info, self._retry, cuts_bodies=self._cuts_bodies)


def _get(target: str) -> Request:
    return Request("GET", target, {"accept": JSON})
