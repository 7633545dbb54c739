"""POST /v1/sessions/{id}/steps: push, step, pull.

The one hot route. It is a bare ASGI endpoint: FastAPI's reading of parameters would cost more than a small step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from optimd_service.api.direct import share
from optimd_service.api.headers import header
from optimd_service.api.media import Kind, kind_of_body, kind_of_reply
from optimd_service.api.parts import take_part
from optimd_service.api.pull import Pull
from optimd_service.api.query import refuse_unknown_parameters
from optimd_service.api.reply import EncodedResponse
from optimd_service.api.segments import bring, read_segment, require_segments, take_lead
from optimd_service.api.services import services_of
from optimd_service.api.step_reply import StepReply
from optimd_service.session.contribution import Part
from optimd_service.session.following import Following
from optimd_service.session.incoming import Incoming
from optimd_service.session.preconditions import Precondition
from optimd_service.session.session import Session
from optimd_service.session.stepped import Stepped
from optimd_service.wire.body import Body
from optimd_service.wire.disconnected import Disconnected
from optimd_service.wire.received import Received, receive_json, receive_safetensors


class StepEndpoint:
    """A plain object, not a function: Starlette calls it with the bare ASGI triple."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Validate everything, then touch anything. Raises problems; the application answers them."""
        services = services_of(scope)
        body_kind = kind_of_body(header(scope, b"content-type"))
        query = _query(scope)
        part = Part.read(query.get("contribution"), query.get("complete"))
        kind = kind_of_reply(header(scope, b"accept"), default=body_kind)
        pull = Pull.read(kind, query, weightless=part is not None and not part.completes)
        session = await services.sessions.get(scope["path_params"]["session_id"])
        precondition = Precondition.read(header(scope, b"if-match"), header(scope, b"idempotency-key"))
        pull.check(session)  # a refusal must come before the step
        reply = StepReply(session, pull, services.sending(scope, session.lane))
        following = Following() if reply.may_follow else None
        open_body = partial(services.body, scope, receive)
        segment = read_segment(scope)
        if segment is not None:
            share(scope)
            key = require_segments(session, body_kind, precondition, whole=part is None)
            meeting = session.segments.meeting(key, services.idle_timeout_s, leads=segment.leads)
            if not segment.leads:
                await (await bring(open_body, session, segment, meeting))(scope, receive, send)
                return
            taking = take_lead(open_body, session, segment, meeting, precondition, following)
        elif part is None:
            taking = _take(open_body, body_kind, session, precondition, following)
        else:
            taking = take_part(open_body, body_kind, session, part, precondition, following)
        if following is None:
            response = await reply.to(await taking)
            await response(scope, receive, send)
        else:
            await _follow(taking, following, reply, lambda response: response(scope, receive, send))


PUSH_ENDPOINT = StepEndpoint()


async def _take(
    open_body: Callable[[], Body],
    kind: Kind,
    session: Session,
    precondition: Precondition,
    following: Following | None,
) -> Stepped:
    async with session.pushing(precondition):
        incoming = session.incoming()
        received = await _receive(open_body(), kind, session, precondition, incoming)
        return await session.apply(received, precondition, incoming, following)


async def _receive(
    body: Body, kind: Kind, session: Session, precondition: Precondition, incoming: Incoming | None
) -> Received:
    if kind == "json":
        return await receive_json(body, tensors="grads", buffers="buffers")
    return await receive_safetensors(
        body,
        session.headers,
        session.grads if incoming is None else incoming.place,
        run=session.lane.run,
        digested=precondition.key is not None,
        watch=None if incoming is None else incoming.watch,
    )


def _query(scope: Scope) -> Mapping[str, str]:
    if not scope["query_string"]:
        return {}
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    refuse_unknown_parameters(query, {"pull", "holds", "receipt", "contribution", "complete"})
    return query


async def _follow(
    taking: Awaitable[Stepped],
    following: Following,
    reply: StepReply,
    send: Callable[[EncodedResponse], Awaitable[None]],
) -> None:
    """Take a step, and send its weights as they are written; if none are written, reply when all is said."""
    step = asyncio.ensure_future(taking)
    tasks: list[asyncio.Future[Any]] = [step, asyncio.ensure_future(following.begun.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not following.begun.is_set():
            await send(await reply.to(await step))
            return
        tasks.append(asyncio.ensure_future(send(reply.behind(following))))
        await asyncio.wait({step, tasks[-1]})
        if step.exception() is not None:
            raise Disconnected  # the reply had begun
        step.result().snapshot.release()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
