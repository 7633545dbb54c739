"""Sending a request until it is answered: what is tried again, and when."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from optimd._exchange import Operation, Reply, Request, Sleep
from optimd.errors import ConnectionFailed, NotConnected, OptimdError, ProblemError, StateDamaged, TimedOut

_PASSING = frozenset({408, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter: attempt n waits between 0 and ``base_s``·2ⁿ, at most ``cap_s``.

    A server's Retry-After is a lower bound of the wait, itself at most ``cap_s``.
    """

    retries: int
    base_s: float = 0.25
    cap_s: float = 30.0
    jitter: Callable[[], float] = random.random

    def wait(self, attempt: int, retry_after_s: float | None = None) -> float:
        """Seconds to wait after failed attempt number ``attempt``, from 0."""
        backoff = min(self.cap_s, math.ldexp(self.base_s, attempt)) * self.jitter()
        return max(backoff, min(retry_after_s or 0.0, self.cap_s))


def ask(request: Request, retry: Retry) -> Operation[Reply]:
    """Send until a reply below 400 comes, the error is not worth another attempt, or attempts run out.

    Every attempt is the very same request: same Idempotency-Key, same bytes.

    Raises: the last attempt's error, with its number in ``attempts``.
    """
    attempt = 0
    while True:
        try:
            reply: Reply = yield request
            if reply.status < 300 or reply.status == 304:
                return reply
            raise problem_in(reply)
        except OptimdError as error:
            error.attempts = attempt + 1
            if attempt >= retry.retries or not _is_worth_retrying(error, request):
                raise
            retry_after_s = error.retry_after_s if isinstance(error, ProblemError) else None
        if request.cut_at is not None:  # whatever stands between may not like two halves
            request = replace(request, cut_at=None)
        yield Sleep(retry.wait(attempt, retry_after_s))
        attempt += 1


def _is_worth_retrying(error: OptimdError, request: Request) -> bool:
    if not request.repeatable:
        return isinstance(error, NotConnected)
    if isinstance(error, ProblemError):
        passing = error.status in _PASSING and not isinstance(error, StateDamaged)
        return passing or error.slug in {"step-in-flight", "stale-replica"}
    return isinstance(error, ConnectionFailed | TimedOut)


def problem_in(reply: Reply) -> ProblemError:
    """The error that a reply stands for; one without a problem document gets a detail that names the status."""
    problem = ProblemError.of(reply.status, _document(reply))
    problem.retry_after_s = _seconds(reply.headers.get("retry-after", ""))
    return problem


def _document(reply: Reply) -> dict[str, object]:
    if reply.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            document = json.loads(bytes(reply.body))
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
    if reply.status < 400:
        moved = reply.headers.get("location", "elsewhere")
        return {"detail": f"The server points to {moved}; redirects are not followed, use that URL."}
    return {"detail": f"HTTP {reply.status} without a problem document: is this URL an optimd server's?"}


def _seconds(retry_after: str) -> float | None:
    # The date form would need the server's clock and ours to agree.
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
