"""The errors that optimd answers with, and nothing else.

    Problem                                 500  internal-error
    ├── BadRequest                          400  (never raised itself)
    │   ├── MalformedJson                   400  malformed-json
    │   ├── MalformedSafetensors            400  malformed-safetensors
    │   └── MalformedHeader                 400  malformed-header
    ├── NotFound                            404  route-not-found
    │   ├── SessionNotFound                 404  session-not-found
    │   ├── StepNotFound                    404  step-not-found
    │   ├── StepNotRetained                 404  step-not-retained
    │   └── OptimizerNotFound               404  optimizer-not-found
    ├── MethodNotAllowed                    405  method-not-allowed
    ├── NotAcceptable                       406  not-acceptable
    ├── BodyTimeout                         408  body-timeout
    ├── SegmentsIncomplete                  408  segments-incomplete
    ├── StepInFlight                        409  step-in-flight
    ├── StaleReplica                        409  stale-replica
    ├── ContributionIncomplete              409  contribution-incomplete
    ├── SessionLost                         410  session-lost
    ├── StaleStep                           412  stale-step
    ├── TooLarge                            413  too-large
    ├── UnsupportedMediaType                415  unsupported-media-type
    ├── UnsupportedDtype                    415  unsupported-dtype
    ├── RangeNotSatisfiable                 416  range-not-satisfiable
    ├── Unprocessable                       422  (never raised itself)
    │   ├── InvalidField                    422  invalid-field
    │   │   └── InvalidHyperparameter       422  invalid-hyperparameter
    │   ├── TensorMismatch                  422  tensor-mismatch
    │   ├── ShapeMismatch                   422  shape-mismatch
    │   ├── NonfiniteGradients              422  nonfinite-gradients
    │   ├── NonfiniteParams                 422  nonfinite-params
    │   ├── KeyReused                       422  key-reused
    │   ├── SegmentMisplaced                422  segment-misplaced
    │   └── SegmentsNotTaken                422  segments-not-taken
    ├── PreconditionRequired                428  precondition-required
    ├── HistoryUnavailable                  503  history-unavailable
    ├── JournalFailed                       503  journal-failed
    ├── RedisUnavailable                    503  redis-unavailable
    │   └── RedisNotDurable                 503  redis-not-durable
    ├── StateDamaged                        503  state-damaged
    ├── StepUndone                          503  step-undone
    │   ├── JournalCorrupt                  503  journal-corrupt
    │   └── CheckpointCorrupt               503  checkpoint-corrupt
    ├── InsufficientMemory                  507  insufficient-memory
    ├── RedisFull                           507  redis-full
    └── DiskFull                            507  disk-full

Each carries its evidence as keyword arguments; the edge (``api/problems.py``) turns any of them into an RFC 9457
document. A problem says what is wrong and what to do, and never shows a path, SQL or memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class Problem(Exception):
    """Something went wrong inside the server; its log says what."""

    slug: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str, **evidence: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.evidence = evidence

    @classmethod
    def title(cls) -> str:
        """The class's own one-sentence docstring."""
        return (cls.__doc__ or "").split("\n")[0]


class BadRequest(Problem):
    """The request cannot be read."""

    slug, status = "bad-request", 400


class MalformedJson(BadRequest):
    """The body is not the JSON that this call reads."""

    slug = "malformed-json"


class MalformedSafetensors(BadRequest):
    """The body breaks a rule of the safetensors format."""

    slug = "malformed-safetensors"


class MalformedHeader(BadRequest):
    """A request header cannot be read."""

    slug = "malformed-header"


class NotFound(Problem):
    """There is no such route."""

    slug, status = "route-not-found", 404


class SessionNotFound(NotFound):
    """There is no session of that id."""

    slug = "session-not-found"


class StepNotFound(NotFound):
    """The session has no such step in its history."""

    slug = "step-not-found"


class StepNotRetained(NotFound):
    """Nothing that is kept leads back to that step."""

    slug = "step-not-retained"


class OptimizerNotFound(NotFound):
    """The catalogue has no optimizer of that name."""

    slug = "optimizer-not-found"


class MethodNotAllowed(Problem):
    """The route does not take this method."""

    slug, status = "method-not-allowed", 405


class NotAcceptable(Problem):
    """The reply cannot be given in a form that Accept names."""

    slug, status = "not-acceptable", 406


class BodyTimeout(Problem):
    """The body stopped arriving."""

    slug, status = "body-timeout", 408


class SegmentsIncomplete(Problem):
    """A segment of the body did not come, or stopped coming."""

    slug, status = "segments-incomplete", 408


class StepInFlight(Problem):
    """A push with this key is still on its way."""

    slug, status = "step-in-flight", 409
    retry_after_s = 1


class StaleReplica(Problem):
    """Another server has changed the session while this one was about to."""

    slug, status = "stale-replica", 409
    retry_after_s = 0


class ContributionIncomplete(Problem):
    """Parts of a push have not come, or are forgotten."""

    slug, status = "contribution-incomplete", 409


class SessionLost(Problem):
    """What held this session, a server's memory or Redis, holds it no more."""

    slug, status = "session-lost", 410


class StaleStep(Problem):
    """The session has moved past the version that If-Match names."""

    slug, status = "stale-step", 412


class TooLarge(Problem):
    """The request passes a limit of this server."""

    slug, status = "too-large", 413


class UnsupportedMediaType(Problem):
    """The body is of a kind that this call does not read."""

    slug, status = "unsupported-media-type", 415


class UnsupportedDtype(Problem):
    """A tensor has a dtype that this call does not read."""

    slug, status = "unsupported-dtype", 415


class RangeNotSatisfiable(Problem):
    """The body has none of the bytes that Range names."""

    slug, status = "range-not-satisfiable", 416


class Unprocessable(Problem):
    """The request can be read, and cannot be done."""

    slug, status = "unprocessable", 422


class InvalidField(Unprocessable):
    """A field is missing, unknown, or holds a value it cannot hold."""

    slug = "invalid-field"


class InvalidHyperparameter(InvalidField):
    """A hyperparameter is unknown to this optimizer, or out of its range."""

    slug = "invalid-hyperparameter"


class TensorMismatch(Unprocessable):
    """The tensors sent are not the tensors of the session."""

    slug = "tensor-mismatch"


class ShapeMismatch(Unprocessable):
    """A tensor has another shape than the session's."""

    slug = "shape-mismatch"


class NonfiniteGradients(Unprocessable):
    """A gradient holds NaN or infinity, and the session's policy is to reject those."""

    slug = "nonfinite-gradients"


class NonfiniteParams(Unprocessable):
    """Weights or optimizer state to be set hold NaN or infinity."""

    slug = "nonfinite-params"


class KeyReused(Unprocessable):
    """The Idempotency-Key belongs to a push with another body."""

    slug = "key-reused"


class SegmentMisplaced(Unprocessable):
    """A segment of a body does not lie where one can, or where another lies."""

    slug = "segment-misplaced"


class SegmentsNotTaken(Unprocessable):
    """A body like this one cannot come in segments: send it whole."""

    slug = "segments-not-taken"


class PreconditionRequired(Problem):
    """A push must say what it builds on or who it is."""

    slug, status = "precondition-required", 428


class HistoryUnavailable(Problem):
    """The history database does not answer; training goes on, and its rows are kept until it does."""

    slug, status = "history-unavailable", 503
    retry_after_s = 5


class JournalFailed(Problem):
    """The disk did not take what makes a step durable, and the step was not taken."""

    slug, status = "journal-failed", 503
    retry_after_s = 5


class RedisUnavailable(Problem):
    """Redis does not answer, or refuses; nothing that was acknowledged is lost, and sessions go on when it answers."""

    slug, status = "redis-unavailable", 503
    retry_after_s = 1


class RedisNotDurable(RedisUnavailable):
    """Redis is set up so that it may lose what it has acknowledged, and this server takes no such one."""

    slug = "redis-not-durable"
    retry_after_s = 60


class StateDamaged(Problem):
    """An update failed half-way, and the session's weights can no longer be trusted."""

    slug, status = "state-damaged", 503


class StepUndone(Problem):
    """An update failed half-way, and the session went back to what is on disk."""

    slug, status = "step-undone", 503
    retry_after_s = 1


class JournalCorrupt(StateDamaged):
    """What the disk holds of this session is not what was written there."""

    slug = "journal-corrupt"


class CheckpointCorrupt(StateDamaged):
    """A checkpoint on disk is not what was written there."""

    slug = "checkpoint-corrupt"


class InsufficientMemory(Problem):
    """The server has no room for this session."""

    slug, status = "insufficient-memory", 507


class RedisFull(Problem):
    """Redis has no memory left for this; nothing was changed."""

    slug, status = "redis-full", 507


class DiskFull(Problem):
    """The server's disk has no room for this step."""

    slug, status = "disk-full", 507


def every_problem() -> Iterator[type[Problem]]:
    """Yield every class that a caller can meet, each with a slug of its own, in the order of the tree."""
    abstract = {BadRequest, Unprocessable}
    waiting: list[type[Problem]] = [Problem]
    while waiting:
        cls = waiting.pop(0)
        waiting[:0] = cls.__subclasses__()
        if cls not in abstract:
            yield cls
