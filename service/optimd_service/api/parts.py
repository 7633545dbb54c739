"""POST /v1/sessions/{id}/steps?contribution=…: a push whose gradients come in several bodies."""

from __future__ import annotations

from collections.abc import Callable

from optimd_service.api.media import Kind
from optimd_service.session.contribution import Part
from optimd_service.session.following import Following
from optimd_service.session.part import Arriving, PartBody, PartHeaders
from optimd_service.session.preconditions import Precondition
from optimd_service.session.session import Session
from optimd_service.session.stepped import Stepped
from optimd_service.wire.body import Body
from optimd_service.wire.json_part import receive_json_part
from optimd_service.wire.received import receive_safetensors


async def take_part(
    open_body: Callable[[], Body],
    kind: Kind,
    session: Session,
    part: Part,
    precondition: Precondition,
    following: Following | None,
) -> Stepped:
    """Receive one part and keep it, or step if it completes its contribution."""
    async with session.assembling(part, precondition) as arriving:
        received = await _receive(open_body(), kind, session, arriving, precondition)
        if part.completes:
            return await session.apply(received, precondition, arriving.contribution.incoming, following)
        return await session.keep(received)


async def _receive(
    body: Body, kind: Kind, session: Session, arriving: Arriving, precondition: Precondition
) -> PartBody:
    if kind == "json":
        return PartBody(await receive_json_part(body), arriving)
    incoming = arriving.contribution.incoming
    received = await receive_safetensors(
        body,
        PartHeaders(session.part_headers, arriving),
        session.grads,
        run=session.lane.run,
        digested=arriving.completes and precondition.key is not None,
        watch=None if incoming is None else incoming.watch,
    )
    return PartBody(received, arriving)
