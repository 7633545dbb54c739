"""POST /v1/sessions/{id}/steps: push, step, pull.

The one hot route. It is a bare ASGI endpoint: FastAPI's reading of parameters would cost more than a small step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import torch
from starlette.types import Receive, Scope, Send

from optimd_service.api.headers import header
from optimd_service.api.media import MEDIA_TYPES, Kind, kind_of_body, kind_of_reply
from optimd_service.api.query import refuse_unknown_parameters
from optimd_service.api.reply import EncodedResponse
from optimd_service.api.services import Services, services_of
from optimd_service.session.preconditions import Precondition
from optimd_service.session.session import Session, Stepped
from optimd_service.types import Receipt
from optimd_service.wire.body import Body
from optimd_service.wire.dtypes import queried_dtype
from optimd_service.wire.encode import Encoded, encode_json
from optimd_service.wire.json import write_json
from optimd_service.wire.received import Received, receive_json, receive_safetensors


@dataclass(frozen=True, slots=True)
class Pull:
    """What the reply is to carry: weights in ``dtype`` (the session's when None), or none at all."""

    kind: Kind
    weights: bool
    dtype: torch.dtype | None

    def is_quick(self, session: Session) -> bool:
        """Whether the reply takes no more than moving bytes, and few of them."""
        as_they_are = self.kind == "safetensors" and self.dtype in {None, session.layout.dtype}
        return session.tiny and (as_they_are or not self.weights)


class StepEndpoint:
    """A plain object, not a function: Starlette calls it with the bare ASGI triple."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Validate everything, then touch anything. Raises problems; the application answers them."""
        services = services_of(scope)
        body_kind = kind_of_body(header(scope, b"content-type"))
        pull = _pull(scope, body_kind)
        session = await services.sessions.get(scope["path_params"]["session_id"])
        precondition = Precondition.read(header(scope, b"if-match"), header(scope, b"idempotency-key"))
        if pull.weights and pull.kind == "json":
            session.encoder.check_json()  # a refusal must come before the step
        async with session.pushing(precondition):
            body = Body(receive, idle_timeout_s=services.idle_timeout_s)
            stepped = await session.apply(await _receive(body, body_kind, session), precondition)
        response = await _reply(session, stepped, pull, services)
        await response(scope, receive, send)


PUSH_ENDPOINT = StepEndpoint()


async def _receive(body: Body, kind: Kind, session: Session) -> Received:
    if kind == "json":
        return await receive_json(body, tensors="grads", buffers="buffers")
    return await receive_safetensors(body, session.headers, session.grads, run=session.lane.run)


def _pull(scope: Scope, body_kind: Kind) -> Pull:
    kind = kind_of_reply(header(scope, b"accept"), default=body_kind)
    if not scope["query_string"]:
        return Pull(kind, weights=True, dtype=None)
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    wanted = query.get("pull")
    refuse_unknown_parameters(query, {"pull"})
    if wanted == "none":
        return Pull(kind, weights=False, dtype=None)
    return Pull(kind, weights=True, dtype=None if wanted is None else queried_dtype("pull", wanted))


async def _reply(session: Session, stepped: Stepped, pull: Pull, services: Services) -> EncodedResponse:
    snapshot = stepped.snapshot
    try:
        if pull.is_quick(session):
            encoded = _encode(session, stepped, pull)
        else:
            encoded = await session.lane.run(_encode, session, stepped, pull)
    except BaseException:
        snapshot.release()
        raise
    return EncodedResponse(
        encoded,
        media_type=MEDIA_TYPES[pull.kind],
        headers={"etag": f'"{snapshot.version.etag}"'},
        idle_timeout_s=services.idle_timeout_s,
        release=snapshot.release,
    )


def _encode(session: Session, stepped: Stepped, pull: Pull) -> Encoded:
    receipt = receipt_fields(stepped.receipt)
    params = stepped.snapshot.params
    if pull.kind == "safetensors":
        metadata = {"receipt": write_json(receipt).decode()}
        if not pull.weights:
            return session.encoder.nothing(metadata)
        return session.encoder.safetensors(params, metadata, dtype=pull.dtype)
    reply: dict[str, Any] = {"receipt": receipt}
    if pull.weights:
        reply["params"] = session.encoder.json(params, dtype=pull.dtype)
    return encode_json(reply)


def receipt_fields(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON has it."""
    return receipt._asdict()
