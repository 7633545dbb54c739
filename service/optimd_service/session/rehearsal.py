"""A first push on weights that nobody keeps, so that no push waits for its kernels to be compiled or loaded."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from optimd_service.optim.update import Here
from optimd_service.session.plan import Plan
from optimd_service.session.push import Push
from optimd_service.store.device import DeviceStore
from optimd_service.types import Layout
from optimd_service.wire.rows import Rows


class _Zeros:
    """A push whose gradients are all zero."""

    quick = True

    def digest(self) -> bytes:
        return b""

    def fields(self) -> dict[str, Any]:
        return {}

    def holds_buffers(self, layout: Layout) -> bool:  # noqa: ARG002  it never does
        return False

    def rows(self, layout: Layout) -> Mapping[str, Rows]:  # noqa: ARG002  they come whole
        return {}

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:  # noqa: ARG002
        flat.zero_()


def rehearse(plan: Plan) -> None:
    """Take one push, and one that completes a step, in memory of their own: for sessions small enough for that."""
    state = DeviceStore(sys.maxsize).create("rehearsal", plan.layout, plan.buffers, plan.grads)
    for policy in {plan.policy, replace(plan.policy, accumulate=None)}:
        Push("rehearsal", _Zeros(), None, state, replace(plan, policy=policy)).apply(Here())
