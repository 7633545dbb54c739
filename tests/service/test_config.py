from __future__ import annotations

from pathlib import Path

import pytest

from optimd_service import config
from optimd_service.config import Settings

MACHINE = Settings().memory_limit_bytes


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ("1000\n", 800),
        ("max\n", MACHINE),
        ("9223372036854771712\n", MACHINE),  # what control groups of version 1 tell in place of "max"
    ],
)
def test_sessions_may_fill_four_fifths_of_what_the_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, limit: int
) -> None:
    (tmp_path / "limit").write_text(told)
    monkeypatch.setattr(config, "CONTAINER_LIMITS", (tmp_path / "missing", tmp_path / "limit"))
    assert Settings().memory_limit_bytes == limit
