"""What the routes work with, handed to the application when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Scope

from optimd_service.history import History
from optimd_service.session.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Services:
    """Attributes: idle_timeout_s: how long a client may send or read nothing in the middle of a body."""

    sessions: Sessions
    history: History
    idle_timeout_s: float


def services_of(scope: Scope) -> Services:
    """The services of the application that serves this request."""
    return cast("Services", scope["app"].state.services)


def _of_request(request: Request) -> Services:
    return services_of(request.scope)


Provided = Annotated[Services, Depends(_of_request)]
