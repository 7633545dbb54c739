"""Each slug of the HTTP reference has its class, and each lower error its translation."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import httpx
import pytest

from optimd import errors
from optimd._httpx import translate
from optimd._settings import Settings

REFERENCE = Path(__file__).parents[2] / "docs" / "http.md"


def slugs_of_the_reference() -> dict[str, int]:
    rows = re.findall(
        r"^\| (`[^|]+) \| (\d{3})[^|]*\|", REFERENCE.read_text().partition("## Problems")[2], re.MULTILINE
    )
    return {slug: int(status) for names, status in rows for slug in re.findall(r"`([^`]+)`", names)}


def test_every_slug_of_the_reference_has_a_class_of_its_own() -> None:
    slugs = slugs_of_the_reference()
    assert len(slugs) > 20
    kinds = {type(errors.ProblemError.of(status, {"type": f"/problems/{slug}"})) for slug, status in slugs.items()}
    assert len(kinds) == len(slugs)
    assert set(errors.ProblemError.by_slug) == set(slugs)


def test_the_tree_that_is_drawn_is_the_tree_that_stands() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    standing = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert drawn == standing - {"OptimdError"}


def test_an_unknown_slug_becomes_the_class_of_its_status() -> None:
    assert type(errors.ProblemError.of(404, {"type": "/problems/no-such-checkpoint"})) is errors.NotFound
    assert type(errors.ProblemError.of(418, {"type": "/problems/teapot"})) is errors.ProblemError


def test_a_problem_carries_its_evidence() -> None:
    document = {"type": "/problems/stale-step", "title": "T", "detail": "D", "step": 4, "etag": "4.0"}
    error = errors.ProblemError.of(412, document)
    assert isinstance(error, errors.StaleStep)
    assert (error.step, error.etag, error.evidence, str(error)) == (4, "4.0", {"step": 4, "etag": "4.0"}, "D")


def test_a_problem_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(errors.ProblemError.of(412, {"type": "/problems/stale-step", "step": 4})))  # noqa: S301
    assert isinstance(error, errors.StaleStep)
    assert error.step == 4


NOTHING_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
TIMED_OUT = {"ReadTimeout", "WriteTimeout", "TimeoutException"}
MALFORMED = {"DecodingError", "TooManyRedirects"}


def every_request_error() -> list[type[httpx.RequestError]]:
    kinds = [kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, httpx.RequestError)]
    assert len(kinds) > 12
    return kinds


@pytest.mark.parametrize("kind", every_request_error())
def test_every_error_of_httpx_is_mapped(kind: type[httpx.RequestError]) -> None:
    name = kind.__name__
    expected = (
        errors.NotConnected
        if name in NOTHING_SENT
        else errors.TimedOut
        if name in TIMED_OUT
        else errors.MalformedReply
        if name in MALFORMED
        else errors.ConnectionFailed
    )
    assert type(translate(kind("x"), Settings.resolve("http://h", environ={}))) is expected
