"""Weights that are pulled in place of the current ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from optimd_service.errors import InvalidField
from optimd_service.session.moments import read_buffer
from optimd_service.session.plan import AVERAGED, EMA, SWA, Plan
from optimd_service.store.contract import Working
from optimd_service.types import Version

Averaged = Literal["ema", "swa", "eval"]
_BUFFERS = {"ema": EMA, "swa": SWA}


@dataclass
class Copied:
    """A snapshot of weights that were copied: nobody else writes to them."""

    params: torch.Tensor
    version: Version

    def release(self) -> None:
        """There is nothing to let go of."""


def averaged(working: Working, plan: Plan, which: Averaged) -> torch.Tensor:
    """A copy of the weights, shape [numel], whose trained tensors are an average; buffers and frozen ones are current.

    Raises: InvalidField when the session keeps no such average, or it holds nothing yet.
    """
    copied = working.params.clone()
    trained = copied[: plan.layout.trained.numel]
    if which == "eval":
        _evaluated_(trained, working, plan)
        return copied
    if _BUFFERS[which] not in plan.buffers:
        raise InvalidField(f"The session keeps no {which}; it is asked for when a session is created.", field="weights")
    if not working.numbers.get(AVERAGED, {}).get(_BUFFERS[which]):
        raise InvalidField(f"The {which} holds no step yet; pull it once one has been averaged.", field="weights")
    trained.copy_(working.state[_BUFFERS[which]])
    return copied


def _evaluated_(trained: torch.Tensor, working: Working, plan: Plan) -> None:
    optimizer = plan.settings.optimizer
    if optimizer.evaluate_ is None:
        raise InvalidField(f"{optimizer.name} evaluates its current weights; leave `weights` out.", field="weights")
    for name, hyper in plan.settings.resolved.items():
        if all((name, buffer) in working.started for buffer in optimizer.state(hyper)):
            flats = {buffer: read_buffer(working, plan, buffer) for buffer in optimizer.state(hyper)}
            state = {buffer: plan.layout.cut(flat, name) for buffer, flat in flats.items()}
            optimizer.evaluate_(plan.layout.cut(trained, name), state, hyper)
