"""Query parameters: what a route does not know is refused, so that a slip of the pen is not silently nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fastapi import Request
from fastapi.routing import APIRoute

from optimd_service.errors import InvalidField


def refuse_unknown_parameters(names: Iterable[str], known: Collection[str]) -> None:
    """Raises: InvalidField naming the first that is not known."""
    for name in names:
        if name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InvalidField(f"{name[:80]!r} is not a parameter of this call; {has}.", field=name[:80])


async def only_known_parameters(request: Request) -> None:
    """A dependency of every route: its own signature says which it knows."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params} if isinstance(route, APIRoute) else set()
    refuse_unknown_parameters(request.query_params, known)
