"""A session's state for the tests of checkpoints, and what comes back of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from optimd_service.store.checkpoint import BLOCK, Checkpoint
from optimd_service.store.checkpoints import Checkpoints
from optimd_service.store.contract import Remembered, Working
from optimd_service.store.saving import Saving
from optimd_service.types import Receipt, Version

STANDING: Mapping[str, Any] = {"name": "digits", "optimizer": {"name": "adamw", "lr": 0.1}}
RECEIPT = Receipt("s", 7, 6, "applied", 0.1, None, 1.5, 1.0, 0.25, 1e-300, 0)
REMEMBERED = {"newer": Remembered(RECEIPT, b"\0\xff" * 8), "a": Remembered(RECEIPT._replace(step=8), b"other digest")}
BLOCKS = 3


def small() -> Working:
    state = {"exp_avg": torch.randn(9).bfloat16(), "codes": torch.arange(9, dtype=torch.uint8), "none": torch.empty(0)}
    numbers = {"schedule": {"best": float("inf")}, "default": {"d": 0.1}}
    return Working(torch.randn(9), state, 7, {("default", "exp_avg"), ("head", "codes")}, numbers)


def large() -> Working:
    """Weights and a moment that share the middle one of three blocks."""
    numel = BLOCK * BLOCKS // 8 - 5000
    return Working(torch.randn(numel), {"exp_avg": torch.randn(numel)}, 1, set(), {})


def copied(working: Working) -> Working:
    """What it holds now."""
    state = {name: flat.clone() for name, flat in working.state.items()}
    return Working(working.params.clone(), state, working.updates, set(working.started), dict(working.numbers))


def save(checkpoints: Checkpoints, seq: int, working: Working, label: str | None = None) -> Saving:
    return checkpoints.save(seq, Version(seq, 2), working, STANDING, REMEMBERED, label)


def overwrite(working: Working) -> None:
    """As an update does."""
    for flat in (working.params, *working.state.values()):
        flat.fill_(7)


def assert_holds(checkpoint: Checkpoint, working: Working) -> None:
    """To the bit."""
    found, wanted = checkpoint.working, working
    assert found.state.keys() == wanted.state.keys()
    pairs = [(found.params, wanted.params)] + [(found.state[name], wanted.state[name]) for name in wanted.state]
    for flat, original in pairs:
        assert flat.dtype == original.dtype
        assert torch.equal(flat.view(torch.uint8), original.view(torch.uint8))
    assert (found.updates, found.started, found.numbers) == (wanted.updates, wanted.started, wanted.numbers)
