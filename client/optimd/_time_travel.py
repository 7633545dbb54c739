"""The calls that take a session through time, and what they share with all others."""

from __future__ import annotations

import enum
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import quote

from optimd._description import Fields
from optimd._documents import json_text, read_json
from optimd._exchange import JSON, SAFETENSORS, Body, Operation, Reply, Request
from optimd._retry import Retry, ask
from optimd.models import Checkpoint, Kept, RollbackReport, SessionInfo, WhatIfReport


class Tracked(enum.Enum):
    """Stands for the version that the session handle has seen last."""

    TRACKED = "tracked"


TRACKED = Tracked.TRACKED
IfMatch: TypeAlias = str | Literal[Tracked.TRACKED] | None
_JSON = {"accept": JSON, "content-type": JSON}


class TimeTravel:
    """A session's path, the version seen last, and its calls through time."""

    def __init__(self, info: SessionInfo, retry: Retry) -> None:
        self.id = info["id"]
        self.info = info
        self.etag: str | None = info.get("etag")
        self._retry = retry
        self._path = session_path(self.id)

    def checkpoint(self, label: str | None) -> Operation[Checkpoint]:
        body = [json_text({} if label is None else {"label": label})]
        # Arriving twice, it makes the same one again.
        reply = yield from self._ask(Request("POST", f"{self._path}/checkpoints", _JSON, body))
        return cast("Checkpoint", read_json(reply))

    def checkpoints(self) -> Operation[Kept]:
        reply = yield from self._ask(Request("GET", f"{self._path}/checkpoints", {"accept": JSON}))
        return cast("Kept", read_json(reply))

    def remove_checkpoint(self, label: str) -> Operation[None]:
        target = f"{self._path}/checkpoints/{quote(label, safe='')}"
        yield from self._ask(Request("DELETE", target, repeatable=False))

    def _roll_back(self, moment: Fields, if_match: IfMatch) -> Operation[RollbackReport]:
        condition = self._if_match(if_match)
        # Under If-Match, one that is repeated because its answer was lost would find its own version and call it stale.
        repeatable = not condition
        body = [json_text(moment)]
        request = Request("POST", f"{self._path}/rollback", _JSON | condition, body, repeatable=repeatable)
        return cast("RollbackReport", read_json((yield from self._ask(request))))

    def _fork(self, wanted: Fields) -> Operation[SessionInfo]:
        request = Request("POST", f"{self._path}/fork", _JSON, [json_text(wanted)], repeatable=False)
        # Not as this session's own: the ETag is the other's.
        return cast("SessionInfo", read_json((yield from ask(request, self._retry))))

    def _what_if(self, body: Body) -> Operation[WhatIfReport]:
        headers = {"accept": JSON, "content-type": SAFETENSORS}
        reply = yield from self._ask(Request("POST", f"{self._path}/what-if", headers, body))
        return cast("WhatIfReport", read_json(reply))

    def _ask(self, request: Request) -> Operation[Reply]:
        reply = yield from ask(request, self._retry)
        if "etag" in reply.headers:
            self.etag = reply.headers["etag"].removeprefix("W/").strip('"')
        return reply

    def _if_match(self, if_match: IfMatch) -> dict[str, str]:
        etag = self.etag if if_match is TRACKED else if_match
        return {} if etag is None else {"if-match": '"' + etag.strip('"') + '"'}


def session_path(session_id: str) -> str:
    return "/v1/sessions/" + quote(session_id, safe="")


def moment(step: int | None, etag: str | None, label: str | None) -> dict[str, Any]:
    """Where a session stood, as the server reads it."""
    named = {"step": step, "etag": None if etag is None else etag.strip('"'), "label": label}
    return {name: value for name, value in named.items() if value is not None}
