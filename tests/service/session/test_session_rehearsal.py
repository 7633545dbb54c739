"""A rehearsal meets every kernel that the pushes after it meet."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import pytest

from optimd_service.optim.update import Here
from optimd_service.session.creation import from_json
from optimd_service.session.push import Push
from optimd_service.session.rehearsal import rehearse
from optimd_service.store.device import DeviceStore
from optimd_service.wire.received import JsonBody


@pytest.mark.parametrize(
    ("module", "kernel", "body"),
    [
        ("radam", "_walk", {"optimizer": {"name": "radam"}}),  # other arithmetic from the sixth update on
        ("asgd", "_walk", {"optimizer": {"name": "asgd", "t0": 4}}),
        ("accumulation", "_add", {"optimizer": {"name": "sgd"}, "accumulate": {"steps": 3}}),
        ("difference", "_walk", {"optimizer": {"name": "sgd"}, "wire": {"params": "BF16", "difference": True}}),
    ],
    ids=["radam", "asgd", "accumulate", "difference"],
)
def test_no_push_meets_a_kernel_that_was_not_rehearsed(
    monkeypatch: pytest.MonkeyPatch, module: str, kernel: str, body: dict[str, Any]
) -> None:
    place = import_module(f"optimd_service.optim.{module}")
    function, met = getattr(place, kernel), set[tuple[str, ...]]()

    def noted(*arguments: Any) -> Any:
        met.add(tuple(f"{type(each).__name__} {getattr(each, 'dtype', '')}" for each in arguments))
        return function(*arguments)

    monkeypatch.setattr(place, kernel, noted)
    whole = {**body, "tensors": [{"name": "w", "shape": [4], "init": {"name": "normal"}}]}
    plan = from_json(bytearray(json.dumps(whole), "utf-8"))[0].plan
    rehearse(plan)
    assert met
    rehearsed, state = set(met), DeviceStore(sys.maxsize).create("s", plan.layout, plan.buffers, plan.grads)
    for _ in range(12):
        received = JsonBody(bytearray(b'{"grads": {"w": [1, 2, 3, 4]}}'), "grads", "buffers")
        Push("s", received, None, state, plan).apply(Here())
    assert met == rehearsed
