"""Every call that is not on one session, without IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from optimd._core import SessionCore, Tensors, session_path
from optimd._documents import Page, json_text, query, read_json, read_page
from optimd._exchange import JSON, SAFETENSORS, Operation, Request
from optimd._retry import Retry, ask
from optimd._safetensors import encode
from optimd.errors import MalformedReply
from optimd.models import OptimizerInfo, SessionInfo, SessionStatus

TensorSpecs: TypeAlias = Mapping[str, Sequence[int]] | Sequence[Mapping[str, Any]]


class ServiceCore:
    """The calls of a server as a whole."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def create_session(
        self,
        optimizer: str | Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        tensors: TensorSpecs | None,
        params: Tensors | None,
        description: Mapping[str, Any],
    ) -> Operation[SessionCore]:
        chosen = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
        document = {"optimizer": chosen | dict(hyperparameters), "tensors": _tensor_list(tensors), **description}
        session = json_text({name: value for name, value in document.items() if value is not None})
        if params is None:
            body, kind = [session], JSON
        else:
            body, kind = encode(params, {"session": bytes(session).decode()}), SAFETENSORS
        headers = {"content-type": kind, "accept": JSON}
        return (yield from self._session(Request("POST", "/v1/sessions", headers, body, repeatable=False)))

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

    def health(self) -> Operation[dict[str, Any]]:
        document: dict[str, Any] = read_json((yield from ask(_get("/readyz"), Retry(0))))
        return document

    def _session(self, request: Request) -> Operation[SessionCore]:
        info = read_json((yield from ask(request, self._retry)))
        if not isinstance(info.get("id"), str):
            raise MalformedReply("The reply describes no session.")
        return SessionCore(info, self._retry)


def _get(target: str) -> Request:
    return Request("GET", target, {"accept": JSON})


def _tensor_list(tensors: TensorSpecs | None) -> list[Mapping[str, Any]] | None:
    if tensors is None:
        return None
    if isinstance(tensors, Mapping):
        return [{"name": name, "shape": list(shape)} for name, shape in tensors.items()]
    return list(tensors)
