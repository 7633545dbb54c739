"""The application: routes and error answers put together, as a plain value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Route

from optimd_service.api import advice, catalogue, health, history, openapi, params, problems, sessions, time_travel
from optimd_service.api.query import only_known_parameters
from optimd_service.api.services import Services
from optimd_service.api.steps import PUSH_ENDPOINT

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build(services: Services, *, version: str, lifespan: Lifespan) -> FastAPI:
    """The application over these services; ``Front(app)`` serves it faster."""
    # /docs with its scripts from this server: the machine may not reach anybody else's.
    app = FastAPIOffline(
        title="optimd",
        version=version,
        description="A remote optimizer: gradients in, one step, new weights out, every step on record.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.router.routes.append(Route(openapi.STEPS_PATH, PUSH_ENDPOINT, methods=["POST"]))
    for module in (sessions, params, time_travel, history, catalogue, advice, health, problems):
        app.include_router(module.router, dependencies=[Depends(only_known_parameters)])
    app.include_router(sessions.costs, dependencies=[Depends(only_known_parameters)])
    problems.install(app)
    app.openapi = partial(openapi.describe, app)  # type: ignore[method-assign]
    return app
