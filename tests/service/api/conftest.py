from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

pytest.register_assert_rewrite("api_subject", "openapi_contract")

from api_subject import Subject  # noqa: E402  rewritten only from here on
from openapi_contract import Contract  # noqa: E402

import reaching  # noqa: E402
from reaching import http_client  # noqa: E402


@pytest.fixture(scope="session")
def contract(server_url: str) -> Contract:
    with http_client(server_url) as client:
        return Contract(client.get("/openapi.json").json())


@pytest.fixture(scope="session")
def http(server_url: str, contract: Contract) -> Iterator[httpx.Client]:
    """The shared client: every reply that any test gets through it is held against the OpenAPI document."""
    with http_client(server_url, event_hooks={"response": [contract.check, _skip_what_a_device_refuses]}) as client:
        yield client


def _skip_what_a_device_refuses(reply: httpx.Response) -> None:
    if reaching.device != "cpu" and reply.status_code == 422 and "storage.device cpu" in reply.text:
        pytest.skip(reply.json()["detail"])


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
