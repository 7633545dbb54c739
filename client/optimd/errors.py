"""Everything that optimd raises.

    OptimdError
    ├── InvalidSetting                          (also a ValueError)
    ├── ConnectionFailed
    │   └── NotConnected
    ├── TimedOut
    ├── MalformedReply
    └── ProblemError                            whatever the server refuses
        ├── BadRequest                   400
        │   ├── MalformedJson            400    malformed-json
        │   ├── MalformedSafetensors     400    malformed-safetensors
        │   └── MalformedHeader          400    malformed-header
        ├── NotFound                     404    route-not-found
        │   ├── SessionNotFound          404    session-not-found
        │   ├── StepNotFound             404    step-not-found
        │   ├── StepNotRetained          404    step-not-retained
        │   └── OptimizerNotFound        404    optimizer-not-found
        ├── MethodNotAllowed             405    method-not-allowed
        ├── NotAcceptable                406    not-acceptable
        ├── BodyTimeout                  408    body-timeout
        ├── SegmentsIncomplete           408    segments-incomplete
        ├── StepInFlight                 409    step-in-flight
        ├── StaleReplica                 409    stale-replica
        ├── ContributionIncomplete       409    contribution-incomplete
        ├── SessionLost                  410    session-lost
        ├── StaleStep                    412    stale-step
        ├── TooLarge                     413    too-large
        ├── UnsupportedMediaType         415    unsupported-media-type
        ├── UnsupportedDtype             415    unsupported-dtype
        ├── RangeNotSatisfiable          416    range-not-satisfiable
        ├── Unprocessable                422
        │   ├── InvalidField             422    invalid-field
        │   │   └── InvalidHyperparameter 422   invalid-hyperparameter
        │   ├── TensorMismatch           422    tensor-mismatch
        │   ├── ShapeMismatch            422    shape-mismatch
        │   ├── NonfiniteGradients       422    nonfinite-gradients
        │   ├── NonfiniteParams          422    nonfinite-params
        │   ├── KeyReused                422    key-reused
        │   ├── SegmentMisplaced         422    segment-misplaced
        │   └── SegmentsNotTaken         422    segments-not-taken
        ├── PreconditionRequired         428    precondition-required
        ├── StateDamaged                 503    state-damaged
        │   ├── JournalCorrupt           503    journal-corrupt
        │   └── CheckpointCorrupt        503    checkpoint-corrupt
        ├── StepUndone                   503    step-undone
        ├── InternalError                500    internal-error
        ├── HistoryUnavailable           503    history-unavailable
        ├── JournalFailed                503    journal-failed
        ├── RedisUnavailable             503    redis-unavailable
        │   └── RedisNotDurable          503    redis-not-durable
        ├── InsufficientMemory           507    insufficient-memory
        ├── RedisFull                    507    redis-full
        └── DiskFull                     507    disk-full

A slug that this version does not know becomes the class that carries its status, or else `ProblemError` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")


class OptimdError(Exception):
    """Base of everything that optimd raises.

    Attributes:
      attempts: how many times the request had been sent when this was raised; 1 without retries.
    """

    attempts: int = 1


class InvalidSetting(OptimdError, ValueError):
    """A setting, from an argument or from the environment, cannot be used."""


class ConnectionFailed(OptimdError):
    """The connection broke; the server may or may not have acted on the request."""


class NotConnected(ConnectionFailed):
    """No connection could be opened; nothing was sent."""


class TimedOut(OptimdError):
    """The server stayed silent for too long; it may or may not have acted on the request."""


class MalformedReply(OptimdError):
    """The reply is not what optimd's HTTP reference promises."""


class Evidence(Generic[T]):
    """A member of the problem document, read as an attribute; None when the server left it out."""

    def __set_name__(self, owner: type[ProblemError], name: str) -> None:
        self._name = name

    def __get__(self, problem: ProblemError, owner: type[ProblemError]) -> T | None:
        return problem.evidence.get(self._name)


class ProblemError(OptimdError):
    """The server refused the request, and changed nothing.

    Attributes:
      slug: last part of the problem's `type`, stable; empty when the reply was no problem document.
      status: HTTP status.   title: one sentence for the kind.   detail: what is wrong here and what to do.
      evidence: every other member of the document.
      retry_after_s: seconds after which the server invites another attempt, or None.
    """

    by_slug: ClassVar[dict[str, type[ProblemError]]] = {}
    by_status: ClassVar[dict[int, type[ProblemError]]] = {}
    retry_after_s: float | None = None

    def __init_subclass__(cls, slug: str | None = None, status: int | None = None) -> None:
        if slug is not None:
            ProblemError.by_slug[slug] = cls
        if status is not None:
            ProblemError.by_status[status] = cls

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(status, document)
        self.status = status
        self.slug = str(document.get("type", "")).rpartition("/")[2]
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.evidence = {k: v for k, v in document.items() if k not in {"type", "title", "status", "detail"}}

    def __str__(self) -> str:
        return self.detail or self.title or f"The server answered {self.status}."

    @classmethod
    def of(cls, status: int, document: Mapping[str, Any]) -> ProblemError:
        """The problem as the most exact class that is known for it."""
        slug = str(document.get("type", "")).rpartition("/")[2]
        kind = cls.by_slug.get(slug) or cls.by_status.get(status, ProblemError)
        return kind(status, document)


class BadRequest(ProblemError, status=400):
    """The server cannot read the request."""


class MalformedJson(BadRequest, slug="malformed-json"):
    """The body is not the JSON that this call reads."""

    reason = Evidence[str]()


class MalformedSafetensors(BadRequest, slug="malformed-safetensors"):
    """The body breaks a rule of the safetensors format."""

    rule = Evidence[str]()
    tensor = Evidence[str]()


class MalformedHeader(BadRequest, slug="malformed-header"):
    """The server cannot read a request header."""

    header = Evidence[str]()


class NotFound(ProblemError, slug="route-not-found", status=404):
    """There is nothing at this address."""


class SessionNotFound(NotFound, slug="session-not-found"):
    """There is no session of that id."""


class StepNotFound(NotFound, slug="step-not-found"):
    """The session has no such step in its history."""


class StepNotRetained(NotFound, slug="step-not-retained"):
    """Nothing that is kept leads back to that step; `retained` are stretches of steps that can be returned to."""

    retained = Evidence[list[list[int]]]()


class OptimizerNotFound(NotFound, slug="optimizer-not-found"):
    """The catalogue has no optimizer of that name."""


class MethodNotAllowed(ProblemError, slug="method-not-allowed", status=405):
    """The route does not take this method."""

    allow = Evidence[list[str]]()


class NotAcceptable(ProblemError, slug="not-acceptable", status=406):
    """The server cannot give the reply in the form asked for."""


class BodyTimeout(ProblemError, slug="body-timeout", status=408):
    """The body stopped arriving at the server."""


class SegmentsIncomplete(ProblemError, slug="segments-incomplete"):
    """A segment of the body did not reach the server, or stopped on its way."""


class StepInFlight(ProblemError, slug="step-in-flight"):
    """A push with this key is still on its way."""


class StaleReplica(ProblemError, slug="stale-replica"):
    """Another server has changed the session while the one that was asked was about to: send the same again."""

    step = Evidence[int]()
    base_step = Evidence[int]()


class ContributionIncomplete(ProblemError, slug="contribution-incomplete"):
    """Parts of a push have not come, or the server has forgotten them: push all gradients whole."""

    contribution = Evidence[str]()
    missing = Evidence[list[str]]()


class SessionLost(ProblemError, slug="session-lost", status=410):
    """What held this session, a server's memory or Redis, holds it no more; its history remains."""

    step = Evidence[int]()
    found_step = Evidence[int]()


class StaleStep(ProblemError, slug="stale-step", status=412):
    """The session has moved past the version that If-Match names: pull, and compute the gradients anew."""

    step = Evidence[int]()
    etag = Evidence[str]()


class TooLarge(ProblemError, slug="too-large", status=413):
    """The request passes a limit of the server."""

    limit = Evidence[int]()


class UnsupportedMediaType(ProblemError, slug="unsupported-media-type"):
    """The body is of a kind that this call does not read."""

    supported = Evidence[list[str]]()


class UnsupportedDtype(ProblemError, slug="unsupported-dtype"):
    """A tensor has a dtype that this call does not read."""

    tensor = Evidence[str]()
    dtype = Evidence[str]()
    supported = Evidence[list[str]]()


class RangeNotSatisfiable(ProblemError, slug="range-not-satisfiable", status=416):
    """The body has none of the bytes asked for."""

    length = Evidence[int]()


class Unprocessable(ProblemError, status=422):
    """The server can read the request, and cannot do it."""


class InvalidField(Unprocessable, slug="invalid-field"):
    """A field is missing, unknown, or holds a value it cannot hold."""

    field = Evidence[str]()


class InvalidHyperparameter(InvalidField, slug="invalid-hyperparameter"):
    """A hyperparameter is unknown to this optimizer, or out of its range."""


class TensorMismatch(Unprocessable, slug="tensor-mismatch"):
    """The tensors sent are not the tensors of the session."""

    missing = Evidence[list[str]]()
    unknown = Evidence[list[str]]()


class ShapeMismatch(Unprocessable, slug="shape-mismatch"):
    """A tensor has another shape than the session's."""

    tensor = Evidence[str]()
    expected = Evidence[list[int]]()
    got = Evidence[list[int]]()


class NonfiniteGradients(Unprocessable, slug="nonfinite-gradients"):
    """A gradient holds NaN or infinity, and the session's policy is to reject those."""

    tensors = Evidence[list[str]]()


class NonfiniteParams(Unprocessable, slug="nonfinite-params"):
    """Weights or optimizer state to be set hold NaN or infinity."""

    tensors = Evidence[list[str]]()


class KeyReused(Unprocessable, slug="key-reused"):
    """The Idempotency-Key belongs to a push with another body."""


class SegmentMisplaced(Unprocessable, slug="segment-misplaced"):
    """A segment of a body does not lie where one can, or where another lies."""

    total = Evidence[int]()
    header_bytes = Evidence[int]()
    multiple = Evidence[int]()


class SegmentsNotTaken(Unprocessable, slug="segments-not-taken"):
    """The server takes this body whole alone."""


class PreconditionRequired(ProblemError, slug="precondition-required", status=428):
    """A push must say what it builds on (If-Match) or who it is (Idempotency-Key)."""

    step = Evidence[int]()
    etag = Evidence[str]()


class StateDamaged(ProblemError, slug="state-damaged"):
    """An update failed half-way, and the session's weights can no longer be trusted."""


class JournalCorrupt(StateDamaged, slug="journal-corrupt"):
    """What the server's disk holds of the session is not what was written there."""

    file = Evidence[str]()
    offset = Evidence[int]()


class CheckpointCorrupt(StateDamaged, slug="checkpoint-corrupt"):
    """A checkpoint on the server's disk is not what was written there."""

    file = Evidence[str]()
    part = Evidence[str]()
    offset = Evidence[int]()


class StepUndone(ProblemError, slug="step-undone"):
    """An update failed half-way, and the session went back to what is on disk: push again."""


class InternalError(ProblemError, slug="internal-error"):
    """The server failed; its log says why."""


class HistoryUnavailable(ProblemError, slug="history-unavailable"):
    """The history database cannot be read just now; sessions and their steps are not touched by it."""


class JournalFailed(ProblemError, slug="journal-failed"):
    """The server's disk did not take what makes a step durable, and the step was not taken."""


class RedisUnavailable(ProblemError, slug="redis-unavailable"):
    """The server's Redis does not answer; nothing that was acknowledged is lost."""


class RedisNotDurable(RedisUnavailable, slug="redis-not-durable"):
    """The server's Redis may lose what it has acknowledged, and the server takes no such one."""

    warnings = Evidence[list[str]]()


class InsufficientMemory(ProblemError, slug="insufficient-memory", status=507):
    """The server has no room for this session."""

    needed_bytes = Evidence[int]()
    available_bytes = Evidence[int]()


class RedisFull(ProblemError, slug="redis-full"):
    """The server's Redis has no memory left for this; nothing was changed."""


class DiskFull(ProblemError, slug="disk-full"):
    """The server's disk has no room for this step; nothing was changed."""
