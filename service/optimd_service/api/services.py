"""What the routes work with, handed to the application when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Receive, Scope

from optimd_service.api.direct import Direct
from optimd_service.api.headers import header
from optimd_service.api.reply import Sending
from optimd_service.api.transfer import Transfer
from optimd_service.history import History
from optimd_service.session.arithmetic import Lane
from optimd_service.session.sessions import Sessions
from optimd_service.wire.body import Body


@dataclass(frozen=True, slots=True)
class Services:
    """Attributes: idle_timeout_s: how long a client may send or read nothing in the middle of a body."""

    sessions: Sessions
    history: History
    idle_timeout_s: float

    def _transfer(self, scope: Scope) -> Transfer | None:
        return Transfer.of(scope, self.sessions.arithmetic.transfers, self.idle_timeout_s)

    def sending(self, scope: Scope, lane: Lane) -> Sending:
        """How the reply to a request is sent, if it is large; ``lane`` makes its pieces."""
        return Sending(lane.run, self._transfer(scope), self.idle_timeout_s)

    def body(self, scope: Scope, receive: Receive) -> Body:
        """The body of a request."""
        direct = Direct.of(scope)
        arrived = None if direct is None else direct.arrived()
        if arrived is not None:
            return Body(receive, idle_timeout_s=self.idle_timeout_s, arrived=arrived)
        length = header(scope, b"content-length") or ""
        return Body(
            receive,
            idle_timeout_s=self.idle_timeout_s,
            length=int(length) if length.isdecimal() else None,
            shortcut=self._transfer(scope),
        )


def services_of(scope: Scope) -> Services:
    """The services of the application that serves this request."""
    return cast("Services", scope["app"].state.services)


def _of_request(request: Request) -> Services:
    return services_of(request.scope)


Provided = Annotated[Services, Depends(_of_request)]
