"""`make chaos-retries`, and a short form of it for every day."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from retries import retried

SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbits(32))
RETRIES = int(os.environ.get("CHAOS_RETRIES") or 2000)


def test_requests_that_are_sent_again_until_they_are_answered_are_one_step_each(tmp_path: Path) -> None:
    told = retried(tmp_path, SEED, RETRIES)
    print(f"seed {SEED}: {told}")  # noqa: T201  for whoever runs it for long
    assert told.retries >= RETRIES
    assert told.duplicates > 0
