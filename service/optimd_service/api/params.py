"""GET and PUT /v1/sessions/{id}/params and /state: weights and optimizer state, out and in."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from optimd_service.api import reference
from optimd_service.api.direct import share
from optimd_service.api.headers import header, if_match
from optimd_service.api.media import MEDIA_TYPES, Kind, kind_of_body, kind_of_reply
from optimd_service.api.ranges import ACCEPTED, Range
from optimd_service.api.reply import EncodedResponse
from optimd_service.api.services import Provided
from optimd_service.session import changing
from optimd_service.session.averages import Averaged
from optimd_service.session.description import read_exchange
from optimd_service.session.facts import refuse_unknown
from optimd_service.session.imported import StateBody, StateHeaders
from optimd_service.session.preconditions import Match
from optimd_service.session.session import Session
from optimd_service.store.contract import Snapshot
from optimd_service.types import Version
from optimd_service.wire.dtypes import queried_dtype
from optimd_service.wire.encode import Encoded, encode_json, encode_tensors
from optimd_service.wire.json import read_object, write_json
from optimd_service.wire.received import receive_json, receive_safetensors

router = APIRouter(tags=["weights and state"])
LONGEST_WAIT_S = 60
_WEIGHTS = "An average that the session keeps, or what the optimizer evaluates; it takes the place of trained tensors."
_STRICT = "All buffers of a group or none, and nothing else; false also takes a part, and says what was passed over."
_WAIT = re.compile(r"\bwait\s*=\s*\"?(\d{1,6})")


@router.get("/v1/sessions/{session_id}/params", **reference.PULL)
async def pull(
    session_id: str,
    request: Request,
    services: Provided,
    dtype: Annotated[
        str | None,
        Query(description="f32, f64, bf16 or f16; when absent, what the session's `wire` says, else its own."),
    ] = None,
    names: Annotated[list[str] | None, Query(description="Tensors wanted; all when absent.")] = None,
    weights: Annotated[Literal[Averaged, "current"], Query(description=_WEIGHTS)] = "current",
) -> Response:
    """Pull the weights of exactly one version, or an average of them."""
    session = await services.sessions.get(session_id)
    wanted = session.params_dtype if dtype is None else queried_dtype("dtype", dtype)
    kind = kind_of_reply(header(request.scope, b"accept"), default="safetensors")
    if not await _is_newer(session, request):
        return Response(status_code=304, headers=_etag(session.version))
    snapshot = await (session.pull() if weights == "current" else session.averaged(weights))
    part, about = None, {}
    try:
        if match := if_match(request.scope):
            match.check(snapshot.version)
        encoded = await session.lane.run(_encode, session, snapshot, kind, wanted, names)
        if kind == "safetensors":
            part, about = Range.read(request.scope, snapshot.version), ACCEPTED
        if part:
            share(request.scope)
            encoded, placed = part.of(encoded)
            about = {**about, **placed}
    except BaseException:
        snapshot.release()
        raise
    return EncodedResponse(
        encoded,
        media_type=MEDIA_TYPES[kind],
        headers={**_etag(snapshot.version), **about},
        sending=services.sending(request.scope, session.lane),
        release=snapshot.release,
        status_code=200 if part is None else 206,
    )


async def _is_newer(session: Session, request: Request) -> bool:
    known = header(request.scope, b"if-none-match")
    if known is None:
        return True
    match = Match.read(known, name="If-None-Match")
    found = _WAIT.search(request.headers.get("prefer", ""))
    if found and match.accepts(session.version):
        return await session.moved_from(match, min(int(found[1]), LONGEST_WAIT_S))
    return not match.accepts(session.version)


def _encode(session: Session, snapshot: Snapshot, kind: Kind, dtype: torch.dtype, names: list[str] | None) -> Encoded:
    version = snapshot.version
    if kind == "safetensors":
        metadata = {"step": str(version.step), "etag": version.etag}
        return session.encoder.safetensors(snapshot.params, metadata, dtype=dtype, names=names)
    return encode_json({"params": session.encoder.json(snapshot.params, names=names, dtype=dtype), **_stands(version)})


@router.put("/v1/sessions/{session_id}/params", **reference.PUT_PARAMS)
async def put_params(session_id: str, request: Request, services: Provided) -> Response:
    """Replace the weights; the optimizer's state stays."""
    kind = kind_of_body(request.headers.get("content-type"))
    session = await services.sessions.get(session_id)
    async with session.replacing(if_match(request.scope)):
        body = services.body(request.scope, request.receive)
        if kind == "json":
            received = await receive_json(body, tensors="params")
            await session.lane.run(lambda: refuse_unknown(received.fields(), frozenset({"params"})))
            version = await changing.put_params(session, received)
        else:
            place = session.landing_place
            sent = await receive_safetensors(body, session.weight_headers, place, run=session.lane.run)
            version = await changing.put_params(session, sent)
    return _replaced(version)


@router.get("/v1/sessions/{session_id}/state", **reference.GET_STATE)
async def get_state(session_id: str, request: Request, services: Provided) -> Response:
    """Take the optimizer's state away, under torch's names."""
    session = await services.sessions.get(session_id)
    metadata, tensors = await session.state()
    encoded = await session.lane.run(encode_tensors, tensors, metadata)
    return EncodedResponse(
        encoded,
        media_type=MEDIA_TYPES["safetensors"],
        headers={"etag": f'"{metadata["etag"]}"'},
        sending=services.sending(request.scope, session.lane),
    )


@router.put("/v1/sessions/{session_id}/state", **reference.PUT_STATE)
async def put_state(
    session_id: str,
    request: Request,
    services: Provided,
    *,
    strict: Annotated[bool, Query(description=_STRICT)] = True,
) -> Response:
    """Bring optimizer state in; the weights stay. With ``strict=false`` also a part of it."""
    kind_of_body(request.headers.get("content-type"), supported=("safetensors",))
    session = await services.sessions.get(session_id)
    async with session.replacing(if_match(request.scope)):
        headers = StateHeaders(session.plan, strict=strict)
        body = services.body(request.scope, request.receive)
        received = await receive_safetensors(body, headers, None, run=session.lane.run)
        version = await changing.put_state(session, StateBody(received, headers))
    return _replaced(version, **({} if strict else {"passed_over": headers.passed_over}))


@router.put("/v1/sessions/{session_id}/optimizer", **reference.EXCHANGE)
async def put_optimizer(session_id: str, request: Request, services: Provided) -> Response:
    """Give the session another optimizer; its state carries over where it can, and the reply says what was dropped."""
    kind_of_body(request.headers.get("content-type"), supported=("json",))
    session = await services.sessions.get(session_id)
    body = services.body(request.scope, request.receive)
    received = await receive_json(body, tensors="params")
    wanted = await session.lane.run(lambda: read_exchange(read_object(received.text)))
    change, version = await services.sessions.exchange(session, wanted, if_match(request.scope))
    return _replaced(version, **change.report())


def _replaced(version: Version, **report: Any) -> Response:
    return Response(write_json({**_stands(version), **report}), 200, _etag(version), MEDIA_TYPES["json"])


def _stands(version: Version) -> dict[str, int | str]:
    return {"step": version.step, "etag": version.etag}


def _etag(version: Version) -> dict[str, str]:
    return {"etag": f'"{version.etag}"'}
