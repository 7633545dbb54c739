"""The OpenAPI document: FastAPI's own, the bare step route, and the schemas of every document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from optimd_service.api.documents import DOCUMENTS
from optimd_service.api.reference import PUSH
from optimd_service.session.catalogue import catalogue

STEPS_PATH = "/v1/sessions/{session_id}/steps"
_REF = "#/components/schemas/{model}"


def describe(app: FastAPI) -> dict[str, Any]:
    """Build the document once, and keep it."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        document["paths"].setdefault(STEPS_PATH, {})["post"] = _push()
        document.setdefault("components", {})["schemas"] = _schemas()
        app.openapi_schema = document
    return app.openapi_schema


def _push() -> dict[str, Any]:
    responses = {str(status): reply for status, reply in PUSH["responses"].items()}
    return {
        "tags": ["steps"],
        "summary": PUSH["summary"],
        "operationId": "push",
        "responses": responses,
        **PUSH["openapi_extra"],
    }


def _schemas() -> dict[str, Any]:
    _, definitions = models_json_schema([(model, "validation") for model in DOCUMENTS], ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    schemas["OptimizerDescription"] = _optimizer_choices()
    return schemas


def _optimizer_choices() -> dict[str, Any]:
    """One schema for each optimizer of the catalogue, told apart by its name."""
    return {"title": "OptimizerDescription", "oneOf": [_choice(row) for row in catalogue().values()]}


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    own = row["hyperparameters"]
    properties = {"name": {"const": row["name"]}, **own["properties"]}
    return {**own, "title": row["name"], "properties": properties, "required": ["name"], "description": row["summary"]}
