"""Request headers as one value each."""

from __future__ import annotations

from starlette.types import Scope

from optimd_service.session.preconditions import Match

_READ = "optimd.headers"


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header; several of one name are one list, as RFC 9110 reads them."""
    values: dict[bytes, str] | None = scope.get(_READ)
    if values is None:
        values = scope[_READ] = {}
        for key, value in scope["headers"]:
            text = str(value, "latin-1")
            values[key] = f"{values[key]}, {text}" if key in values else text
    return values.get(name)


def if_match(scope: Scope) -> Match | None:
    """The versions that the request accepts. Raises: MalformedHeader."""
    value = header(scope, b"if-match")
    return None if value is None else Match.read(value)
