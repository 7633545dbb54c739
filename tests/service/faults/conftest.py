from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("faulted", "torch_replay")

from crashing_server import CrashingServer  # noqa: E402


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CrashingServer]:
    """One of the test's own."""
    with CrashingServer(tmp_path / "data") as server:
        yield server
