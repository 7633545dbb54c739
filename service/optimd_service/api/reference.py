"""What the OpenAPI document says of each route: bodies, headers, replies and every problem it can answer with."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from optimd_service import errors
from optimd_service.api import documents, examples
from optimd_service.api.media import JSON, SAFETENSORS
from optimd_service.session.advice import Task
from optimd_service.session.description import OptimizerExchange, SessionChange, SessionDescription

PROBLEM_JSON = "application/problem+json"
Operation = dict[str, Any]

_BODY = (errors.MalformedJson, errors.TooLarge, errors.UnsupportedMediaType, errors.BodyTimeout, errors.InvalidField)
_TENSORS = (
    *_BODY,
    errors.MalformedSafetensors,
    errors.UnsupportedDtype,
    errors.TensorMismatch,
    errors.ShapeMismatch,
)
_LIVE = (errors.SessionNotFound, errors.SessionLost, errors.HistoryUnavailable)
_WRITTEN = (errors.StaleStep, errors.MalformedHeader, errors.StateDamaged, errors.InsufficientMemory)


def schema(model: type[BaseModel]) -> dict[str, str]:
    """A reference to a document's schema among the components."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json(model: type[BaseModel], example: Any = None) -> dict[str, Any]:
    return {JSON: {"schema": schema(model)} | ({} if example is None else {"example": example})}


def _safetensors(description: str) -> dict[str, Any]:
    return {SAFETENSORS: {"schema": {"type": "string", "format": "binary", "description": description}}}


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    text = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": text, "example": example}


def _reply(description: str, content: dict[str, Any] | None = None, *, etag: bool = False) -> dict[str, Any]:
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
        status: _reply(" ".join(f"`{cls.slug}`: {cls.title()}" for cls in found), _problem_content(found))
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


IF_MATCH = _header("If-Match", "Do it only if the session stands here: a version, or the step alone.", '"3.0"')
KEY = _header("Idempotency-Key", "The push of this key happens once. 1 to 255 visible ASCII characters.", "7c9e6679")
IF_NONE_MATCH = _header("If-None-Match", "304 while the session still stands here.", '"3.0"')
PREFER = _header("Prefer", "With If-None-Match: wait so many seconds (60 at most) for a newer version.", "wait=30")
ACCEPT = _header("Accept", "The kind of reply wanted.", SAFETENSORS)
WEIGHTS = _safetensors("Every tensor of the session; `step` and `etag` in `__metadata__`.")

CREATE = operation(
    "Create a session",
    {
        201: _reply("The session.", _json(documents.SessionDocument), etag=True),
        **problems(*_TENSORS, errors.InvalidHyperparameter, errors.NonfiniteParams, errors.InsufficientMemory),
    },
    body=_json(SessionDescription, examples.CREATE)
    | _safetensors("The first weights; everything else as JSON text in `__metadata__`'s `session`."),
)
COST = operation(
    "What a session would cost",
    {
        200: _reply("Bytes, by what they are for.", _json(documents.CostDocument)),
        **problems(*_BODY, errors.InvalidHyperparameter),
    },
    body=_json(SessionDescription, examples.CREATE),
)
CREATE["responses"][201]["headers"]["Location"] = {"description": "The session's path.", "schema": {"type": "string"}}
LIST = operation(
    "List sessions",
    {
        200: _reply("A page of sessions.", _json(documents.SessionList)),
        **problems(errors.InvalidField, errors.HistoryUnavailable),
    },
)
INSPECT = operation(
    "Inspect a session",
    {
        200: _reply("The session.", _json(documents.SessionDocument), etag=True),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
CHANGE = operation(
    "Change hyperparameters",
    {
        200: _reply("The session as it now stands.", _json(documents.SessionDocument), etag=True),
        **problems(*_LIVE, *_BODY, errors.InvalidHyperparameter),
    },
    body=_json(SessionChange, examples.CHANGE),
)
DELETE = operation(
    "Delete a session and its history",
    {
        204: _reply("Gone."),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
PULL = operation(
    "Pull weights",
    {
        200: _reply("The weights of exactly one version.", WEIGHTS | _json(documents.ParamsReply), etag=True),
        304: _reply("The session still stands where If-None-Match says.", etag=True),
        **problems(*_LIVE, errors.NotAcceptable, errors.InvalidField, errors.MalformedHeader, errors.StateDamaged),
    },
    parameters=(IF_NONE_MATCH, PREFER, ACCEPT),
)
PUT_PARAMS = operation(
    "Set weights",
    {
        200: _reply("Where the session stands now.", _json(documents.Stands), etag=True),
        **problems(*_LIVE, *_TENSORS, *_WRITTEN, errors.NonfiniteParams),
    },
    body=WEIGHTS | _json(documents.ParamsBody, examples.PARAMS),
    parameters=(IF_MATCH,),
)
GET_STATE = operation(
    "Export optimizer state",
    {
        200: _reply(
            "The moments.",
            _safetensors("`<tensor>.<buffer>`; `optimizer`, `step` and `etag` in `__metadata__`."),
            etag=True,
        ),
        **problems(*_LIVE, errors.InvalidField, errors.StateDamaged),
    },
)
PUT_STATE = operation(
    "Import optimizer state",
    {
        200: _reply("Where the session stands now.", _json(documents.StatePut), etag=True),
        **problems(*_LIVE, *_TENSORS, *_WRITTEN, errors.NonfiniteParams),
    },
    body=_safetensors("`<tensor>.<buffer>`; `step`, and if wanted `optimizer` and `numbers`, in `__metadata__`."),
    parameters=(IF_MATCH,),
)
EXCHANGE = operation(
    "Give a session another optimizer",
    {
        200: _reply("What became of the old one's state.", _json(documents.ExchangeReport), etag=True),
        **problems(*_LIVE, *_BODY, *_WRITTEN, errors.InvalidHyperparameter),
    },
    body=_json(OptimizerExchange, examples.EXCHANGE),
    parameters=(IF_MATCH,),
)
PUSH = operation(
    "Push gradients, step, pull",
    {
        200: _reply(
            "The receipt, and the new weights.",
            _safetensors("The weights; the receipt as JSON text in `__metadata__`'s `receipt`.")
            | _json(documents.PushReply),
            etag=True,
        ),
        **problems(
            *_LIVE,
            *_TENSORS,
            *_WRITTEN,
            errors.NotAcceptable,
            errors.StepInFlight,
            errors.InvalidHyperparameter,
            errors.NonfiniteGradients,
            errors.KeyReused,
            errors.PreconditionRequired,
        ),
    },
    body=_safetensors(
        "Gradients; `loss`, `num_examples`, `worker`, `hyperparameters` in `__metadata__`. For an optimizer that takes "
        "rows, a tensor's gradient may be `<tensor>#rows`, I64 [k], and `<tensor>#values`, [k, width], in place of one "
        "entry."
    )
    | _json(documents.PushBody, examples.PUSH),
    parameters=(
        {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}},
        {
            "name": "pull",
            "in": "query",
            "description": "Dtype of the weights in the reply; the session's when absent.",
            "schema": {"enum": ["f32", "f64", "bf16", "f16", "none"]},
        },
        IF_MATCH,
        KEY,
        ACCEPT,
    ),
)
STEPS = operation(
    "The history of a session",
    {
        200: _reply("A page of steps.", _json(documents.StepList)),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
STEP = operation(
    "One step",
    {
        200: _reply("The step.", _json(documents.StepDocument)),
        **problems(errors.SessionNotFound, errors.StepNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
EVENTS = operation(
    "The events of a session",
    {
        200: _reply("A page of events.", _json(documents.EventList)),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
OPTIMIZERS = operation("The catalogue", {200: _reply("All optimizers.", _json(documents.OptimizerList))})
OPTIMIZER = operation(
    "One optimizer",
    {
        200: _reply("The optimizer.", _json(documents.OptimizerDocument)),
        **problems(errors.OptimizerNotFound, errors.InvalidField),
    },
)
ADVICE = operation(
    "Which optimizer to take",
    {
        200: _reply("Recommendations, the best first, and what to mind.", _json(documents.AdviceDocument)),
        **problems(*_BODY),
    },
    body=_json(Task, examples.ADVICE),
)
HEALTH = operation("Alive", {200: _reply("Alive.", _json(documents.Liveness))})
READY = operation(
    "Ready",
    {
        200: _reply("Ready.", _json(documents.Readiness)),
        **problems(errors.HistoryUnavailable),
    },
)
PROBLEMS = operation("Every problem this server answers with", {200: _reply("All.", _json(documents.ProblemList))})
PROBLEM = operation(
    "What one problem means",
    {
        200: _reply("The problem.", _json(documents.ProblemMeaning)),
        **problems(errors.NotFound, errors.InvalidField),
    },
)
