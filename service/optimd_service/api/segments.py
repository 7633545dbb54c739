"""POST /v1/sessions/{id}/steps with `Content-Range`: a push whose body comes over several connections at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias, cast

from starlette.responses import Response
from starlette.types import Scope

from optimd_service.api.headers import header
from optimd_service.api.media import JSON, Kind
from optimd_service.errors import MalformedHeader, PreconditionRequired, SegmentsNotTaken
from optimd_service.session.following import Following
from optimd_service.session.incoming import Incoming
from optimd_service.session.preconditions import Precondition
from optimd_service.session.segments import Gathering
from optimd_service.session.session import Session
from optimd_service.session.stepped import Stepped
from optimd_service.wire.body import Body
from optimd_service.wire.digest import BodyDigest
from optimd_service.wire.gathered import GatheredBody
from optimd_service.wire.json import write_json
from optimd_service.wire.received import read_header, receive_header
from optimd_service.wire.segment import Segment

Meeting: TypeAlias = AbstractContextManager[Gathering]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE)


def read_segment(scope: Scope) -> Segment | None:
    """Which bytes of its body a request brings; None if it brings all. Raises: MalformedHeader."""
    said = header(scope, b"content-range")
    if said is None:
        return None
    found = _CONTENT_RANGE.fullmatch(said)
    segment = Segment(int(found[1]), int(found[2]) + 1, int(found[3])) if found else Segment(0, 0, 0)
    if not segment.start < segment.stop <= segment.total:
        raise MalformedHeader(
            "Content-Range takes the first and the last byte of this segment and the length of the whole body, such as "
            "bytes 0-8388687/16777296.",
            header="Content-Range",
        )
    if header(scope, b"content-length") != str(segment.stop - segment.start):
        raise MalformedHeader("Content-Length must be the length of the segment.", header="Content-Length")
    return segment


def require_segments(session: Session, kind: Kind, precondition: Precondition, *, whole: bool) -> str:
    """The key by which segments of a push meet.

    Args:
      whole: the push is not in parts.

    Raises: SegmentsNotTaken, PreconditionRequired.
    """
    if kind == "json" or not whole or not session.takes_segments:
        raise SegmentsNotTaken(
            "Segments are taken of safetensors bodies that hold a whole push, in sessions whose `segments` is true. "
            "Send this one whole, without Content-Range."
        )
    if precondition.key is None:
        raise PreconditionRequired(
            "Send an `Idempotency-Key`, the same with every segment: they meet by it.",
            step=session.version.step,
            etag=session.version.etag,
        )
    return precondition.key


async def take_lead(
    open_body: Callable[[], Body],
    session: Session,
    segment: Segment,
    meeting: Meeting,
    precondition: Precondition,
    following: Following | None,
) -> Stepped:
    """Receive the segment that begins a body, wait for the others, and step."""
    with meeting as gathering, gathering.led():
        async with session.pushing(precondition):
            incoming = cast("Incoming", session.incoming())  # of a session that takes segments
            body = open_body()
            raw = await receive_header(body)
            landing, metadata = await read_header(session.headers, raw, session.lane.run)
            gathered = GatheredBody(raw, metadata, landing, incoming.place(landing), BodyDigest(raw), incoming.watch)
            async with gathering.received(gathered, segment):
                await gathered.receive(segment, body, session.lane.run)
            return await session.apply(gathered.whole(), precondition, incoming, following)


async def bring(open_body: Callable[[], Body], session: Session, segment: Segment, meeting: Meeting) -> Response:
    """Receive a segment of a push that another request leads."""
    with meeting as gathering:
        await gathering.bring(segment, lambda gathered: gathered.receive(segment, open_body(), session.lane.run))
    return Response(write_json({"received": segment.stop - segment.start}), 202, media_type=JSON)
