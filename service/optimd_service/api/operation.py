"""The OpenAPI document's words for one route, put together: bodies, headers, replies and problems."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from optimd_service import errors
from optimd_service.api import documents
from optimd_service.api.media import JSON, SAFETENSORS

PROBLEM_JSON = "application/problem+json"
Operation = dict[str, Any]


def schema(model: type[BaseModel]) -> dict[str, str]:
    """A reference to a document's schema among the components."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def json_body(model: type[BaseModel], example: Any = None) -> dict[str, Any]:
    """A body or a reply in JSON."""
    return {JSON: {"schema": schema(model)} | ({} if example is None else {"example": example})}


def safetensors_body(description: str) -> dict[str, Any]:
    """A body or a reply in safetensors; ``description`` says what it holds."""
    return {SAFETENSORS: {"schema": {"type": "string", "format": "binary", "description": description}}}


def header(name: str, description: str, example: str) -> dict[str, Any]:
    """A header that a route reads."""
    text = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": text, "example": example}


def reply(description: str, content: dict[str, Any] | None = None, *, etag: bool = False) -> dict[str, Any]:
    """One reply, with its ``content`` by media type."""
    headers = {"ETag": {"description": "The version of the weights.", "schema": {"type": "string"}, "example": '"3.0"'}}
    return {
        "description": description,
        **({"content": content} if content else {}),
        **({"headers": headers} if etag else {}),
    }


def problems(*classes: type[errors.Problem]) -> dict[int, dict[str, Any]]:
    """Replies for these problems, those of one status together."""
    by_status: dict[int, list[type[errors.Problem]]] = defaultdict(list)
    for cls in dict.fromkeys(classes):
        by_status[cls.status].append(cls)
    return {
        status: reply(" ".join(f"`{cls.slug}`: {cls.title()}" for cls in found), _problem_content(found))
        for status, found in sorted(by_status.items())
    }


def _problem_content(found: list[type[errors.Problem]]) -> dict[str, Any]:
    shown = {
        cls.slug: {
            "value": {"type": f"/problems/{cls.slug}", "title": cls.title(), "status": cls.status, "detail": "…"}
        }
        for cls in found
    }
    return {PROBLEM_JSON: {"schema": schema(documents.ProblemDocument), "examples": shown}}


def operation(
    summary: str,
    replies: dict[int, dict[str, Any]],
    *,
    body: dict[str, Any] | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
) -> Operation:
    """Keyword arguments for a FastAPI route."""
    extra: dict[str, Any] = {}
    if body:
        extra["requestBody"] = {"required": True, "content": body}
    if parameters:
        extra["parameters"] = list(parameters)
    succeeded = min(replies)
    return {
        "summary": summary,
        "status_code": succeeded,
        "response_class": Response,
        "responses": replies,
        "openapi_extra": extra,
    }
