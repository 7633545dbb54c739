"""`make chaos`, and a short form of it for every day."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from faults_by_chance import Chaos, Violation

SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbits(32))
KILLS = int(os.environ.get("CHAOS_KILLS") or 6)


def test_whatever_happens_every_acknowledged_step_is_there_once_and_no_other(tmp_path: Path) -> None:
    with Chaos(tmp_path, SEED) as chaos:
        try:
            while chaos.kills < KILLS:
                chaos.life()
                print(chaos.said(), flush=True)  # noqa: T201  whoever runs it for long wants to see it go on
        except Violation as violation:
            pytest.fail(f"{violation}\n{chaos.said()}\n{chaos.output()[-4000:]}")
