"""Errors at the edge: each becomes an RFC 9457 problem document."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from optimd_service.api import reference
from optimd_service.api.media import JSON
from optimd_service.api.operation import PROBLEM_JSON
from optimd_service.errors import (
    InsufficientMemory,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    Problem,
    RangeNotSatisfiable,
    every_problem,
)
from optimd_service.wire.disconnected import Disconnected
from optimd_service.wire.json import write_json

router = APIRouter(tags=["server"])
log = logging.getLogger("optimd")
# How torch tells that the host has no memory, in a RuntimeError like any other.
_HOSTS_ALLOCATOR = "DefaultCPUAllocator"
_NO_ROOM = (
    "There is no memory free for this call where the session lies; nothing was changed. Send it again when others have "
    "freed some, or delete a session there."
)


def document(problem: Problem) -> dict[str, Any]:
    """The problem as RFC 9457 has it, its evidence as extension members."""
    return {
        "type": f"/problems/{problem.slug}",
        "title": problem.title(),
        "status": problem.status,
        "detail": problem.detail,
        **problem.evidence,
    }


def problem_response(problem: Problem) -> Response:
    """The reply that tells a problem."""
    headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    if isinstance(problem, MethodNotAllowed):
        headers["Allow"] = problem.evidence["allow"]
    if isinstance(problem, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{problem.evidence['length']}"
    return Response(write_json(document(problem)), problem.status, headers, PROBLEM_JSON)


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem document."""
    app.add_exception_handler(Problem, lambda _, error: problem_response(error))
    app.add_exception_handler(RequestValidationError, _invalid_parameter)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _routing_error)  # type: ignore[arg-type]
    app.add_exception_handler(Disconnected, _gone)
    app.add_exception_handler(MemoryError, _internal)
    app.add_exception_handler(torch.OutOfMemoryError, _internal)
    app.add_exception_handler(Exception, _internal)


async def _invalid_parameter(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    field = str(first["loc"][-1])[:80]
    return problem_response(InvalidField(f"{field}: {first['msg']}.", field=field))


async def _routing_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allow = _methods(request) or (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not a method of this route; it takes {allow}."
        return problem_response(MethodNotAllowed(detail, allow=allow))
    return problem_response(NotFound("There is no such route; /docs lists them all."))


def _methods(request: Request) -> str:
    """Every method of this path; the router names those of the first route alone."""
    for template, operations in request.app.openapi()["paths"].items():
        if compile_path(template)[0].match(request.url.path):
            return ", ".join(method.upper() for method in operations)
    return ""


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _internal(_request: Request, error: Exception) -> Response:
    return answer(error)


def answer(error: Exception) -> Response:
    """The reply to any error; one that is no problem of ours is logged, and tells the caller nothing more."""
    if isinstance(error, Problem):
        return problem_response(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _HOSTS_ALLOCATOR in str(error):
        return problem_response(InsufficientMemory(_NO_ROOM))
    log.error("internal error", exc_info=error)
    return problem_response(Problem("The server failed; its log says why. Nothing of your request was kept."))


@router.get("/problems", **reference.PROBLEMS)
async def list_problems() -> Response:
    """Slug, status and meaning of each."""
    return Response(write_json({"problems": [_about(cls) for cls in every_problem()]}), media_type=JSON)


@router.get("/problems/{slug}", **reference.PROBLEM)
async def show_problem(slug: str) -> Response:
    """The page that a problem's ``type`` names."""
    for cls in every_problem():
        if cls.slug == slug:
            return Response(write_json(_about(cls)), media_type=JSON)
    raise NotFound("There is no such problem; /problems lists them all.")


def _about(cls: type[Problem]) -> dict[str, Any]:
    return {"type": f"/problems/{cls.slug}", "status": cls.status, "title": cls.title()}
