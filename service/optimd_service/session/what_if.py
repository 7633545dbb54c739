"""One gradient under several settings: what each would do to a session, and nothing is done to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from optimd_service.optim.norm import norm
from optimd_service.session.branching import Alternative, Branch, branch, copy_, enter_
from optimd_service.session.description import Strict, Title, read_as
from optimd_service.session.push import Push
from optimd_service.session.rebuilding import place_of
from optimd_service.session.session import Session
from optimd_service.session.wire_dtypes import Wire
from optimd_service.store.contract import Store, StoredState
from optimd_service.types import BufferSize, Layout, Receipt, Span
from optimd_service.wire.json import finite_or_none
from optimd_service.wire.received import Received
from optimd_service.wire.rows import Rows

MAX_CANDIDATES = 32
MAX_TENSORS = 256
OWN = "update.own"
"""The buffer that holds the update by the session's own settings."""
_BLOCK = 2**20


class Candidate(Alternative):
    """Settings to try."""

    name: Title | None = Field(None, description="To tell it from the others; default: the optimizer's.")


class Candidates(Strict):
    """What is said beside the gradients."""

    candidates: list[Candidate] = Field(min_length=1, max_length=MAX_CANDIDATES)


class WhatIfBody(Candidates):
    """The body of a what-if in JSON."""

    grads: dict[str, Any] = Field(description="Nested lists by tensor name; every trained tensor of the session.")


@dataclass(frozen=True)
class _Given:
    """A push whose gradients lie in memory, and stay as they are."""

    grads: torch.Tensor
    quick: bool = True

    def digest(self) -> bytes:
        return b""

    def fields(self) -> dict[str, Any]:
        return {}

    def holds_buffers(self, layout: Layout) -> bool:  # noqa: ARG002  it never does
        return False

    def rows(self, layout: Layout) -> Mapping[str, Rows]:  # noqa: ARG002  they come whole
        return {}

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:  # noqa: ARG002
        flat[: len(self.grads)].copy_(self.grads)


class WhatIf:
    """A copy of a session as it stands, on which one gradient is tried; in threads, but for the making of it.

    A push that would be added to others is tried as the whole of its step.

    Args:
      store: gives memory.   base, trial: ids that are free there; the memory of both is the caller's to drop.
    """

    def __init__(self, session: Session, store: Store, base: str, trial: str) -> None:
        self._session = session
        self._store = store
        self._ids = base, trial
        policy = replace(session.policy, accumulate=None, ema=None, swa=None, wire=Wire())
        self._plan = replace(session.plan, policy=policy)
        self._trained = self._plan.layout.trained

    def copy(self) -> None:
        """Take the copy, while nobody writes the session. Raises: InsufficientMemory, StateDamaged."""
        read, plan = self._session.stored.read_state(), self._plan
        needed = {name: flat for name, flat in read.state.items() if name in plan.buffers}
        sizes = {name: BufferSize(flat.numel(), flat.dtype) for name, flat in needed.items()}
        own = BufferSize(self._trained.numel, plan.layout.dtype)
        base = self._room(self._ids[0], {**sizes, OWN: own})
        copy_(base, replace(read, state=needed), self._session.version)
        self._base = base

    def judge(self, received: Received) -> dict[str, Any]:
        """What each candidate would do, and the session's own settings.

        Raises: InvalidField, InvalidHyperparameter, TensorMismatch, ShapeMismatch, NonfiniteGradients,
        InsufficientMemory.
        """
        candidates = read_as(Candidates, received.fields()).candidates
        step = self._base.version.step
        branches = [branch(self._plan, wanted, step) for wanted in candidates]  # all of them, before any is tried
        received.land_(self._base.grads, self._trained)
        own = self._try(Branch(self._plan, None))
        working = self._base.read_state()
        working.state[OWN].copy_(self._update)
        shown = _figures(own, None, Branch(self._plan, None), self._compare())
        return {
            "step": step,
            "etag": self._base.version.etag,
            "grad_norm": finite_or_none(norm(self._grads)),
            "own": shown,
            "candidates": [
                _figures(self._try(taken), wanted.name, taken, self._compare())
                for wanted, taken in zip(candidates, branches, strict=True)
            ],
        }

    def _room(self, session_id: str, sizes: Mapping[str, BufferSize]) -> StoredState:
        plan = self._plan
        return self._store.create(session_id, plan.layout, sizes, plan.grads, plan.policy.device)

    def _try(self, taken: Branch) -> Receipt:
        """Take the step in memory of its own; what changed is then in ``_update``."""
        base = self._base.read_state()
        source = replace(base, state={name: flat for name, flat in base.state.items() if name != OWN})
        self._store.drop(self._ids[1])
        trial = self._room(self._ids[1], {n: BufferSize(f.numel(), f.dtype) for n, f in source.state.items()})
        copy_(trial, source, self._base.version)
        enter_(trial, taken, self._base.version)
        push = Push(self._session.id, _Given(self._grads), None, trial, taken.plan)
        receipt = push.apply(place_of(taken.plan, self._session.lane))
        self._update = trial.read_state().params[: self._trained.numel]
        self._update.sub_(self._params)
        return receipt

    @property
    def _grads(self) -> torch.Tensor:
        return self._base.grads[: self._trained.numel]

    @property
    def _params(self) -> torch.Tensor:
        return self._base.read_state().params[: self._trained.numel]

    def _compare(self) -> dict[str, Any]:
        """The update beside the gradient, the session's own update and the weights."""
        own, layout = self._base.read_state().state[OWN], self._trained
        tensors = [{"name": name, **self._beside(span)} for name, span in layout.spans.items()]
        tensors.sort(key=lambda tensor: -(tensor["relative_update"] or 0))
        whole = self._beside(Span(0, layout.numel))
        return {
            "update_rms": _ratio(whole["update_norm"], math.sqrt(layout.numel)),
            "relative_update": whole["relative_update"],
            "cosine_to_descent": _cosine(self._update, self._grads, -1),
            "cosine_to_own": _cosine(self._update, own, 1),
            "groups": {name: self._beside(span) for name, span in layout.groups.items()},
            "tensors": tensors[:MAX_TENSORS],
        }

    def _beside(self, span: Span) -> dict[str, Any]:
        part = slice(*span)
        update, param = norm(self._update[part]), norm(self._params[part])
        return {
            "update_norm": finite_or_none(update),
            "param_norm": finite_or_none(param),
            "grad_norm": finite_or_none(norm(self._grads[part])),
            "relative_update": _ratio(update, param),
        }


def _figures(receipt: Receipt, name: str | None, taken: Branch, compared: Mapping[str, Any]) -> dict[str, Any]:
    plan, exchange = taken.plan, taken.exchange
    carried = {buffer: buffer for buffer in plan.pieces} if exchange is None else dict(exchange.carried)
    optimizer = plan.settings.optimizer.name
    return {
        "name": optimizer if name is None else name,
        "optimizer": optimizer,
        "outcome": receipt.outcome,
        "lr": receipt.lr,
        "clip_scale": receipt.clip_scale,
        "update_norm": receipt.update_norm,
        **compared,
        "carried": carried,
        "fresh": sorted(plan.pieces.keys() - carried.keys()),
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else finite_or_none(above / below)


def _cosine(one: torch.Tensor, other: torch.Tensor, sign: int) -> float | None:
    """Between two flat tensors; None where one of them is zero."""
    return _ratio(sign * _dot(one, other), norm(one) * norm(other))


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    blocks = zip(torch.split(one, _BLOCK), torch.split(other, _BLOCK), strict=True)
    return math.fsum(float(torch.dot(a.double(), b.double())) for a, b in blocks)
