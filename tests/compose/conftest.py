from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_stack import Stack
from compose_training import Run, Training

ROOT = Path(__file__).parents[2]
STEPS = 25
"""Between what happens to one container and what happens to the next."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compose", help="what brings the containers up and down: 'docker compose', or what stands for it"
    )


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Stack]:
    """The whole of docker-compose.yml, up, on volumes of its own that end with it."""
    command = pytestconfig.getoption("--compose", default=None)
    if command is None:
        pytest.skip("needs containers: make compose-test")
    with Stack(shlex.split(command), ROOT) as stack:
        yield stack


@pytest.fixture(scope="session", params=["device", "redis"])
def run(request: pytest.FixtureRequest, stack: Stack) -> Run:
    """A training on sessions of each kind, during which every container was restarted once and the server killed."""
    with Training(stack.url, backend=request.param) as training:
        for disturb in (
            lambda: stack.restart("optimd"),
            lambda: stack.restart("redis"),
            lambda: stack.restart("postgres"),
            stack.kill_server,
            stack.recreate,
        ):
            training.take(STEPS)
            disturb()
        training.take(STEPS)
    return training.run
