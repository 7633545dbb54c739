"""The pure core, driven by hand: no socket, no clock."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from optimd import errors
from optimd._core import SessionCore
from optimd._exchange import Reply, Request, Sleep
from optimd._retry import Retry, ask, problem_in
from optimd._time_travel import TRACKED

READ = Request("GET", "/v1/sessions")
UNREPEATABLE = Request("POST", "/v1/sessions", repeatable=False)
OK = Reply(200, {}, memoryview(b"{}"))
INFO: Any = {"id": "s/1", "etag": "3.0", "tensors": [{"name": "w", "shape": [2]}]}


def problem(slug: str, status: int, **headers: str) -> Reply:
    document = json.dumps({"type": f"/problems/{slug}", "detail": "why"}).encode()
    return Reply(status, {"content-type": "application/problem+json"} | headers, memoryview(document))


def play(request: Request, answers: list[Reply | Exception], retries: int = 3) -> tuple[Any, list[Any]]:
    """Answer each request in turn; returns the outcome and everything the operation yielded."""
    operation = ask(request, Retry(retries, jitter=lambda: 1.0))
    yielded: list[Any] = [next(operation)]
    try:
        while True:
            if isinstance(yielded[-1], Sleep):
                yielded.append(operation.send(None))
                continue
            answer = answers.pop(0)
            yielded.append(operation.throw(answer) if isinstance(answer, Exception) else operation.send(answer))
    except StopIteration as end:
        return end.value, yielded
    except errors.OptimdError as error:
        return error, yielded


@pytest.mark.parametrize(
    "passing",
    [
        errors.ConnectionFailed("cut"),
        errors.NotConnected("refused"),
        errors.TimedOut("silent"),
        problem("body-timeout", 408),
        problem("step-in-flight", 409),
        problem("stale-replica", 409),
        problem("later", 429),
        problem("gateway", 502),
        problem("history-unavailable", 503),
        problem("gateway", 504),
    ],
)
def test_what_passes_is_tried_again_with_the_very_same_request(passing: Reply | Exception) -> None:
    outcome, yielded = play(READ, [passing, OK])
    assert outcome is OK
    assert [READ, Sleep, READ] == [item if isinstance(item, Request) else type(item) for item in yielded]
    assert yielded[0] is yielded[2]


@pytest.mark.parametrize(
    ("slug", "status"),
    [("stale-step", 412), ("key-reused", 422), ("state-damaged", 503), ("internal-error", 500), ("conflict", 409)],
)
def test_what_would_not_pass_is_not_tried_again(slug: str, status: int) -> None:
    outcome, yielded = play(READ, [problem(slug, status)])
    assert (outcome.slug, outcome.attempts, len(yielded)) == (slug, 1, 1)


@pytest.mark.parametrize("ambiguous", [errors.ConnectionFailed("cut"), errors.TimedOut("silent"), problem("x", 503)])
def test_what_must_not_happen_twice_is_not_sent_twice(ambiguous: Reply | Exception) -> None:
    outcome, yielded = play(UNREPEATABLE, [ambiguous])
    assert isinstance(outcome, errors.OptimdError)
    assert yielded == [UNREPEATABLE]


def test_what_was_never_sent_is_sent_again() -> None:
    outcome, _ = play(UNREPEATABLE, [errors.NotConnected("refused"), OK])
    assert outcome is OK


def test_attempts_run_out_and_are_counted() -> None:
    outcome, yielded = play(READ, [errors.TimedOut("silent") for _ in range(4)])
    assert isinstance(outcome, errors.TimedOut)
    assert outcome.attempts == 4
    assert [item.seconds for item in yielded if isinstance(item, Sleep)] == [0.25, 0.5, 1.0]


def test_retry_after_is_a_lower_bound_and_has_a_cap() -> None:
    waits = [Retry(1, jitter=lambda: 0.0).wait(0, seconds) for seconds in (None, 2.0, 1e9)]
    assert waits == [0.0, 2.0, 30.0]
    _, yielded = play(READ, [problem("history-unavailable", 503, **{"retry-after": "7"}), OK])
    assert yielded[1] == Sleep(7.0)


def test_backoff_has_full_jitter_and_a_cap() -> None:
    assert [Retry(1, jitter=lambda: 0.5).wait(attempt) for attempt in (0, 1, 2, 500)] == [0.125, 0.25, 0.5, 15.0]


def step_request(**overrides: Any) -> Request:
    given = {"metadata": {}, "pull": None, "if_match": TRACKED, "key": "k", "out": None} | overrides
    request = next(SessionCore(INFO, Retry(0)).step({"w": np.zeros(2, np.float32)}, **given))
    assert isinstance(request, Request)
    return request


def test_a_step_is_one_repeatable_request() -> None:
    request = step_request(pull="bf16")
    assert (request.method, request.target) == ("POST", "/v1/sessions/s%2F1/steps?pull=bf16")
    assert request.headers["if-match"] == '"3.0"'
    assert request.headers["idempotency-key"] == "k"
    assert request.repeatable


@pytest.mark.parametrize(("given", "sent"), [("3", '"3"'), ('"3.0"', '"3.0"'), (None, None)])
def test_if_match_is_quoted_once(given: str | None, sent: str | None) -> None:
    assert step_request(if_match=given).headers.get("if-match") == sent


def test_a_conditional_put_is_not_repeated() -> None:
    core = SessionCore(INFO, Retry(0))
    assert next(core.put_params({"w": np.zeros(2)}, None)).repeatable
    assert not next(core.put_params({"w": np.zeros(2)}, TRACKED)).repeatable


def test_a_reply_without_a_receipt_is_malformed() -> None:
    operation = SessionCore(INFO, Retry(0)).step({}, {}, None, None, None, None)
    next(operation)
    with pytest.raises(errors.MalformedReply):
        operation.send(OK)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"steps": 3}', b"\xff"])
def test_a_reply_that_is_no_list_is_malformed(body: bytes) -> None:
    operation = SessionCore(INFO, Retry(0)).history(0, None)
    next(operation)
    with pytest.raises(errors.MalformedReply):
        operation.send(Reply(200, {}, memoryview(body)))


def test_a_refusal_without_a_problem_document_names_its_status() -> None:
    error = problem_in(Reply(502, {"content-type": "text/html"}, memoryview(b"<html>")))
    assert (type(error), error.status, error.slug) == (errors.ProblemError, 502, "")
    assert "502" in str(error)
