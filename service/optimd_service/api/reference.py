"""What the OpenAPI document says of each route: bodies, headers, replies and every problem it can answer with."""

from __future__ import annotations

from optimd_service import errors
from optimd_service.api import documents, examples
from optimd_service.api.media import SAFETENSORS
from optimd_service.api.operation import header, json_body, operation, problems, reply, safetensors_body
from optimd_service.session.advice import Task
from optimd_service.session.branching import ForkDescription
from optimd_service.session.description import OptimizerExchange, SessionChange, SessionDescription
from optimd_service.session.moment import CheckpointOrder, Rollback
from optimd_service.session.what_if import WhatIfBody

_BODY = (errors.MalformedJson, errors.TooLarge, errors.UnsupportedMediaType, errors.BodyTimeout, errors.InvalidField)
_TENSORS = (
    *_BODY,
    errors.MalformedSafetensors,
    errors.UnsupportedDtype,
    errors.TensorMismatch,
    errors.ShapeMismatch,
)
_REDIS = (errors.RedisUnavailable, errors.StaleReplica)
_LIVE = (errors.SessionNotFound, errors.SessionLost, errors.HistoryUnavailable, *_REDIS)
_DURABLE = (errors.JournalFailed, errors.JournalCorrupt, errors.DiskFull, errors.RedisFull)
_WRITTEN = (
    errors.StaleStep,
    errors.MalformedHeader,
    errors.StateDamaged,
    errors.StepUndone,
    errors.InsufficientMemory,
    *_DURABLE,
)

IF_MATCH = header("If-Match", "Do it only if the session stands here: a version, or the step alone.", '"3.0"')
KEY = header("Idempotency-Key", "The push of this key happens once. 1 to 255 visible ASCII characters.", "7c9e6679")
IF_NONE_MATCH = header("If-None-Match", "304 while the session still stands here.", '"3.0"')
PREFER = header("Prefer", "With If-None-Match: wait so many seconds (60 at most) for a newer version.", "wait=30")
RANGE = header("Range", "One range of the safetensors body's bytes; several are passed over.", "bytes=0-1048575")
IF_RANGE = header("If-Range", "With Range: all of the body unless the session still stands here.", '"3.0"')
CONTENT_RANGE = header("Content-Range", "The body is this segment of a push's.", "bytes 0-8388687/16777296")
ACCEPT = header("Accept", "The kind of reply wanted.", SAFETENSORS)
WEIGHTS = safetensors_body("Every tensor of the session; `step` and `etag` in `__metadata__`.")

CREATE = operation(
    "Create a session",
    {
        201: reply("The session.", json_body(documents.SessionDocument), etag=True),
        **problems(
            *_TENSORS,
            errors.InvalidHyperparameter,
            errors.NonfiniteParams,
            errors.InsufficientMemory,
            errors.RedisUnavailable,
            errors.RedisNotDurable,
            errors.RedisFull,
        ),
    },
    body=json_body(SessionDescription, examples.CREATE)
    | safetensors_body("The first weights; everything else as JSON text in `__metadata__`'s `session`."),
)
COST = operation(
    "What a session would cost",
    {
        200: reply("Bytes, by what they are for.", json_body(documents.CostDocument)),
        **problems(*_BODY, errors.InvalidHyperparameter),
    },
    body=json_body(SessionDescription, examples.CREATE),
)
CREATE["responses"][201]["headers"]["Location"] = {"description": "The session's path.", "schema": {"type": "string"}}
LIST = operation(
    "List sessions",
    {
        200: reply("A page of sessions.", json_body(documents.SessionList)),
        **problems(errors.InvalidField, errors.HistoryUnavailable),
    },
)
INSPECT = operation(
    "Inspect a session",
    {
        200: reply("The session.", json_body(documents.SessionDocument), etag=True),
        **problems(*_LIVE, errors.InvalidField),
    },
)
CHANGE = operation(
    "Change hyperparameters",
    {
        200: reply("The session as it now stands.", json_body(documents.SessionDocument), etag=True),
        **problems(*_LIVE, *_BODY, *_DURABLE, errors.StateDamaged, errors.InvalidHyperparameter),
    },
    body=json_body(SessionChange, examples.CHANGE),
)
DELETE = operation(
    "Delete a session and its history",
    {
        204: reply("Gone."),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable, errors.RedisUnavailable),
    },
)
PULL = operation(
    "Pull weights",
    {
        200: reply("The weights of exactly one version.", WEIGHTS | json_body(documents.ParamsReply), etag=True),
        206: reply("The bytes that Range names.", WEIGHTS, etag=True),
        304: reply("The session still stands where If-None-Match says.", etag=True),
        **problems(
            *_LIVE,
            errors.NotAcceptable,
            errors.InvalidField,
            errors.MalformedHeader,
            errors.StaleStep,
            errors.RangeNotSatisfiable,
            errors.StateDamaged,
        ),
    },
    parameters=(IF_NONE_MATCH, PREFER, IF_MATCH, RANGE, IF_RANGE, ACCEPT),
)
PUT_PARAMS = operation(
    "Set weights",
    {
        200: reply("Where the session stands now.", json_body(documents.Stands), etag=True),
        **problems(*_LIVE, *_TENSORS, *_WRITTEN, errors.NonfiniteParams),
    },
    body=WEIGHTS | json_body(documents.ParamsBody, examples.PARAMS),
    parameters=(IF_MATCH,),
)
GET_STATE = operation(
    "Export optimizer state",
    {
        200: reply(
            "The moments.",
            safetensors_body("`<tensor>.<buffer>`; `optimizer`, `step` and `etag` in `__metadata__`."),
            etag=True,
        ),
        **problems(*_LIVE, errors.InvalidField, errors.StateDamaged),
    },
)
PUT_STATE = operation(
    "Import optimizer state",
    {
        200: reply("Where the session stands now.", json_body(documents.StatePut), etag=True),
        **problems(*_LIVE, *_TENSORS, *_WRITTEN, errors.NonfiniteParams),
    },
    body=safetensors_body("`<tensor>.<buffer>`; `step`, and if wanted `optimizer` and `numbers`, in `__metadata__`."),
    parameters=(IF_MATCH,),
)
EXCHANGE = operation(
    "Give a session another optimizer",
    {
        200: reply("What became of the old one's state.", json_body(documents.ExchangeReport), etag=True),
        **problems(*_LIVE, *_BODY, *_WRITTEN, errors.InvalidHyperparameter),
    },
    body=json_body(OptimizerExchange, examples.EXCHANGE),
    parameters=(IF_MATCH,),
)
_KEPT = (*_LIVE, *_BODY, errors.StateDamaged, errors.JournalFailed, errors.JournalCorrupt, errors.CheckpointCorrupt)
CHECKPOINT = operation(
    "Make a checkpoint",
    {
        201: reply("What is kept.", json_body(documents.CheckpointDocument), etag=True),
        **problems(*_KEPT, errors.DiskFull),
    },
    body=json_body(CheckpointOrder, examples.CHECKPOINT),
)
CHECKPOINT["openapi_extra"]["requestBody"]["required"] = False
CHECKPOINTS = operation(
    "What a session can go back to",
    {
        200: reply("Checkpoints, and steps that can be returned to.", json_body(documents.CheckpointList)),
        **problems(*_LIVE, errors.InvalidField, errors.JournalFailed, errors.JournalCorrupt),
    },
)
DELETE_CHECKPOINT = operation(
    "Remove a labelled checkpoint",
    {204: reply("Gone."), **problems(*_KEPT, errors.StepNotRetained, errors.DiskFull)},
)
ROLLBACK = operation(
    "Return to where the session stood",
    {
        200: reply("Where the session stands now.", json_body(documents.RollbackReport), etag=True),
        **problems(*_KEPT, *_WRITTEN, errors.StepNotRetained),
    },
    body=json_body(Rollback, examples.ROLLBACK),
    parameters=(IF_MATCH,),
)
FORK = operation(
    "Branch off a session",
    {
        201: reply("The new session.", json_body(documents.SessionDocument), etag=True),
        **problems(
            *_KEPT,
            errors.InvalidHyperparameter,
            errors.InsufficientMemory,
            errors.StepNotRetained,
            errors.RedisNotDurable,
            errors.RedisFull,
            errors.DiskFull,
        ),
    },
    body=json_body(ForkDescription, examples.FORK),
)
FORK["openapi_extra"]["requestBody"]["required"] = False
WHAT_IF = operation(
    "Try one gradient under several settings",
    {
        200: reply("What each would do.", json_body(documents.WhatIfReport)),
        **problems(
            *_LIVE,
            *_TENSORS,
            errors.InvalidHyperparameter,
            errors.NonfiniteGradients,
            errors.InsufficientMemory,
            errors.StateDamaged,
        ),
    },
    body=safetensors_body("Gradients of every trained tensor; `candidates` as JSON text in `__metadata__`.")
    | json_body(WhatIfBody, examples.WHAT_IF),
)
FORK["responses"][201]["headers"]["Location"] = {"description": "Its path.", "schema": {"type": "string"}}
PUSH = operation(
    "Push gradients, step, pull",
    {
        200: reply(
            "The receipt, and the new weights.",
            safetensors_body("The weights; the receipt as JSON text in `__metadata__`'s `receipt`.")
            | json_body(documents.PushReply),
            etag=True,
        ),
        202: reply("A segment that does not lead has come.", json_body(documents.SegmentReply)),
        **problems(
            *_LIVE,
            *_TENSORS,
            *_WRITTEN,
            errors.NotAcceptable,
            errors.StepInFlight,
            errors.ContributionIncomplete,
            errors.InvalidHyperparameter,
            errors.NonfiniteGradients,
            errors.NonfiniteParams,
            errors.KeyReused,
            errors.PreconditionRequired,
            errors.SegmentsIncomplete,
            errors.SegmentMisplaced,
            errors.SegmentsNotTaken,
        ),
    },
    body=safetensors_body(
        "Gradients; `loss`, `num_examples`, `worker`, `hyperparameters` in `__metadata__`. For an optimizer that takes "
        "rows, a tensor's gradient may be `<tensor>#rows`, I64 [k], and `<tensor>#values`, [k, width], in place of one "
        "entry. With `contribution`, some of the gradients; with `complete` too, those that are still missing."
    )
    | json_body(documents.PushBody, examples.PUSH),
    parameters=(
        {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}},
        {
            "name": "pull",
            "in": "query",
            "description": "Dtype of the weights in the reply; when absent, what `wire` says, else the session's.",
            "schema": {"enum": ["f32", "f64", "bf16", "f16", "none"]},
        },
        {
            "name": "holds",
            "in": "query",
            "description": "Where `wire` says `difference`: the token of the weights that the client holds, which a "
            "reply's `__metadata__` gave it in `holds`, or `none`. The reply is the difference to them in BF16, and "
            "says so in `difference`, or whole weights.",
            "schema": {"type": "string"},
        },
        {
            "name": "receipt",
            "in": "query",
            "description": "`last`: in a reply with weights in safetensors the receipt stands behind them, as the text "
            "of a U8 tensor `#receipt`, so that they can leave while the step is being taken. A reply that ends early "
            "is of a step that failed or is unknown: ask again with the same key.",
            "schema": {"enum": ["first", "last"], "default": "first"},
        },
        {
            "name": "contribution",
            "in": "query",
            "description": "The body is a part of a push: the parts of one contribution (a UUID, say) belong together.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,64}$"},
        },
        {
            "name": "complete",
            "in": "query",
            "description": "With true, this part is the contribution's last: the step is taken with all that came.",
            "schema": {"type": "boolean", "default": False},
        },
        IF_MATCH,
        KEY,
        CONTENT_RANGE,
        ACCEPT,
    ),
)
STEPS = operation(
    "The history of a session",
    {
        200: reply("A page of steps.", json_body(documents.StepList)),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
STEP = operation(
    "One step",
    {
        200: reply("The step.", json_body(documents.StepDocument)),
        **problems(errors.SessionNotFound, errors.StepNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
EVENTS = operation(
    "The events of a session",
    {
        200: reply("A page of events.", json_body(documents.EventList)),
        **problems(errors.SessionNotFound, errors.InvalidField, errors.HistoryUnavailable),
    },
)
OPTIMIZERS = operation("The catalogue", {200: reply("All optimizers.", json_body(documents.OptimizerList))})
OPTIMIZER = operation(
    "One optimizer",
    {
        200: reply("The optimizer.", json_body(documents.OptimizerDocument)),
        **problems(errors.OptimizerNotFound, errors.InvalidField),
    },
)
ADVICE = operation(
    "Which optimizer to take",
    {
        200: reply("Recommendations, the best first, and what to mind.", json_body(documents.AdviceDocument)),
        **problems(*_BODY),
    },
    body=json_body(Task, examples.ADVICE),
)
HEALTH = operation("Alive", {200: reply("Alive.", json_body(documents.Liveness))})
READY = operation(
    "Ready",
    {
        200: reply("Ready.", json_body(documents.Readiness)),
        **problems(errors.HistoryUnavailable, errors.RedisUnavailable, errors.RedisNotDurable),
    },
)
PROBLEMS = operation("Every problem this server answers with", {200: reply("All.", json_body(documents.ProblemList))})
PROBLEM = operation(
    "What one problem means",
    {
        200: reply("The problem.", json_body(documents.ProblemMeaning)),
        **problems(errors.NotFound, errors.InvalidField),
    },
)
