"""Pushes on weights that nobody keeps, so that no other waits for its kernels to be compiled or loaded."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from optimd_service.errors import StateDamaged
from optimd_service.optim.difference import difference_
from optimd_service.optim.update import Here
from optimd_service.session.plan import Plan
from optimd_service.session.policy import Policy
from optimd_service.session.push import Push
from optimd_service.store.contract import StoredState
from optimd_service.store.device import DeviceStore
from optimd_service.types import Layout, Version
from optimd_service.wire.rows import Rows

LATE = 2**21  # of updates: beyond ASGD's million before it averages


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
    """Take pushes in memory of their own, where a session's pushes run on the event loop.

    Two that may have to be added up, one that completes a step, and two of a time when warm-ups are over: optimizers
    and averages have other kernels then.
    """
    if not plan.tiny:
        return
    if plan.policy.wire.difference:
        difference_(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1), torch.zeros(1))
    state = DeviceStore(sys.maxsize).create("rehearsal", plan.layout, plan.buffers, plan.grads)
    policy = replace(plan.policy, schedule_from=0)  # whatever step the session stands at, this is the first
    whole = replace(policy, accumulate=None)
    with suppress(StateDamaged):  # what fails here fails at its own push too, and is answered there
        _push(state, plan, policy, policy, whole)
        working = state.begin({})
        working.updates = LATE
        state.commit(working, Version(LATE, 0), {})
        _push(state, plan, whole, whole)


def _push(state: StoredState, plan: Plan, *policies: Policy) -> None:
    for policy in policies:
        Push("rehearsal", _Zeros(), None, state, replace(plan, policy=policy)).apply(Here())
