"""Replying while the step is still being taken, seen from inside: over a socket only its time would show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimd_service.api.pull import Pull
from optimd_service.api.step_reply import StepReply
from optimd_service.api.steps import _follow
from optimd_service.session.following import Following
from optimd_service.session.stepped import Stepped
from optimd_service.types import Version
from optimd_service.wire.disconnected import Disconnected


class Step:
    """A step that ends when it is let, and a record of what happens meanwhile."""

    def __init__(self, *, begins: bool = True, fails: bool = False) -> None:
        self.said: list[str] = []
        self.let = asyncio.Event()
        self.following = Following()
        self.begins, self.fails = begins, fails

    async def take(self) -> Stepped:
        if self.begins:
            self.following.begin(torch.zeros(1), Version(1, 0))
            await self.let.wait()
        self.said.append("step ends")
        if self.fails:
            raise ValueError
        return SimpleNamespace(snapshot=SimpleNamespace(release=lambda: self.said.append("released")))  # type: ignore[return-value]

    async def to(self, _: Stepped) -> str:
        return "reply to a step"

    def behind(self, _: Following) -> str:
        return "reply behind a step"

    async def send(self, reply: Any) -> None:
        self.said.append(reply)
        self.let.set()

    async def follow(self) -> None:
        await _follow(self.take(), self.following, self, self.send)  # type: ignore[arg-type]


async def test_the_reply_begins_before_the_step_has_ended() -> None:
    step = Step()
    await step.follow()
    assert step.said == ["reply behind a step", "step ends", "released"]


async def test_a_step_that_writes_no_weights_is_replied_to_when_it_has_ended() -> None:
    step = Step(begins=False)
    await step.follow()
    assert step.said == ["step ends", "reply to a step"]


async def test_a_push_that_is_refused_is_told_why() -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the very error of the step
        await Step(begins=False, fails=True).follow()


async def test_a_step_that_fails_behind_its_reply_leaves_nobody_to_answer() -> None:
    with pytest.raises(Disconnected):
        await Step(fails=True).follow()


@pytest.mark.parametrize(
    ("last", "waits", "transfer", "follows"),
    [
        (True, False, object(), True),
        (False, False, object(), False),
        (True, True, object(), False),
        (True, False, None, False),
    ],
)
def test_only_a_large_reply_with_its_receipt_last_and_a_thread_of_its_own_follows(
    last: bool, waits: bool, transfer: Any, follows: bool
) -> None:
    pull = Pull("safetensors", weights=True, receipt_last=last)
    reply = StepReply(SimpleNamespace(follows=not waits), pull, SimpleNamespace(transfer=transfer))  # type: ignore[arg-type]
    assert reply.may_follow is follows
