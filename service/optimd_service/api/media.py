"""Which kind of body came, and which kind is wanted."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from optimd_service.errors import NotAcceptable, UnsupportedMediaType

Kind = Literal["safetensors", "json"]

SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"
MEDIA_TYPES: dict[Kind, str] = {"safetensors": SAFETENSORS, "json": JSON}
_KINDS: dict[str, Kind] = {SAFETENSORS: "safetensors", "application/octet-stream": "safetensors", JSON: "json"}
_ANYTHING = {"*/*", "application/*"}


# Remembered, since a client says the same with every request.
@lru_cache(maxsize=64)
def kind_of_body(content_type: str | None, *, supported: tuple[Kind, ...] = ("safetensors", "json")) -> Kind:
    """The kind that Content-Type names. Raises: UnsupportedMediaType."""
    kind = _KINDS.get((content_type or "").partition(";")[0].strip().lower())
    if kind is None or kind not in supported:
        names = [MEDIA_TYPES[name] for name in supported]
        raise UnsupportedMediaType(
            f"This call reads {' or '.join(names)}; Content-Type says {(content_type or 'nothing')[:100]!r}.",
            supported=names,
        )
    return kind


@lru_cache(maxsize=64)
def kind_of_reply(accept: str | None, *, default: Kind) -> Kind:
    """The kind that Accept likes best. Raises: NotAcceptable."""
    if accept is None:
        return default
    ranges = sorted((_quality(part) for part in accept.split(",")), key=lambda named: -named[1])
    for name, quality in ranges:
        if quality > 0 and (name in _KINDS or name in _ANYTHING):
            return _KINDS.get(name, default)
    raise NotAcceptable(f"This call answers with {SAFETENSORS} or {JSON}; Accept names neither.")


def _quality(part: str) -> tuple[str, float]:
    name, *parameters = part.lower().split(";")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name.strip(), float(value)
            except ValueError:
                return name.strip(), 0.0
    return name.strip(), 1.0
