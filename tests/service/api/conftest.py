from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

pytest.register_assert_rewrite("api_subject", "openapi_contract")

from api_subject import Subject  # noqa: E402  rewritten only from here on
from openapi_contract import Contract  # noqa: E402

# Long enough for two busy cores; a call that hangs still fails its test.
TIMEOUT_S = 30


@pytest.fixture(scope="session")
def contract(server_url: str) -> Contract:
    return Contract(httpx.get(f"{server_url}/openapi.json", trust_env=False).json())


@pytest.fixture(scope="session")
def http(server_url: str, contract: Contract) -> Iterator[httpx.Client]:
    """The shared client: every reply that any test gets through it is held against the OpenAPI document."""
    hooks = {"response": [contract.check]}
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(
        base_url=server_url, timeout=TIMEOUT_S, trust_env=False, event_hooks=hooks, limits=limits
    ) as client:
        yield client


@pytest.fixture
def subject(http: httpx.Client) -> Iterator[Subject]:
    """An AdamW session with a group of its own and one step behind it."""
    groups = [{"name": "no_decay", "match": ["bias"], "weight_decay": 0.0}]
    subject = Subject.create(http, groups=groups, lr=0.1)
    subject.push(loss="0.5")
    yield subject
    assert http.delete(subject.path).status_code in {204, 404}


@pytest.fixture
def unchanged(subject: Subject) -> Iterator[None]:
    """The session is the same after the test as before it, to the bit."""
    before = subject.stands()
    yield
    assert subject.stands() == before
