"""A model of several buckets, and holds on what goes on in the background, for the tests of overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

import optimd
from optimd._torch_weights import LocalWeights

MODES = (False, "push", True)


class Network(nn.Module):
    """Layers that are called, one that is not (attention's last), running statistics, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(()))
        self.first, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.last = nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.tanh(self.first(x)))
        return self.scale * self.last(self.attention(x, x, x)[0])


def batch(i: int) -> torch.Tensor:
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(i))


def loss_of(model: nn.Module, i: int) -> torch.Tensor:
    return (model(batch(i)) - batch(i).sum(1, keepdim=True)).square().mean()


def train(model: nn.Module, opt: optimd.RemoteOptimizer, steps: int, start: int = 0) -> Any:
    """Train, with everything that was sent ahead there before each step; the figures of the last one."""
    for i in range(start, start + steps):
        opt.zero_grad()
        loss_of(model, i).backward()
        drain(opt)
        opt.step()
    return figures(opt)


def figures(opt: optimd.RemoteOptimizer) -> Any:
    """Of the last push; asking waits for its weights."""
    receipt = opt.receipt
    assert receipt is not None
    return receipt.step, receipt.outcome, receipt.lr, receipt.grad_norm, receipt.update_norm, receipt.param_norm


def drain(opt: optimd.RemoteOptimizer) -> None:
    """Wait until the background thread has nothing left to do."""
    courier = getattr(opt._binding, "_courier", None)
    if courier is not None:
        courier.send(lambda: None).result(30)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Event]:
    """While the context lasts, weights do not arrive from the named tensor on, unless the event is set."""
    gate, land = Event(), LocalWeights.land

    def wait_and_land(self: LocalWeights, arriving: str) -> None:
        if arriving == name:
            assert gate.wait(30)
        land(self, arriving)

    with monkeypatch.context() as patched:
        patched.setattr(LocalWeights, "land", wait_and_land)
        try:
            yield gate
        finally:
            gate.set()


@contextmanager
def breaking(monkeypatch: pytest.MonkeyPatch, name: str, times: int, before: Callable[[], Any]) -> Iterator[None]:
    """While the context lasts, replies break off at the named tensor, so many times; ``before`` is called first."""
    left, land = [times], LocalWeights.land

    def break_or_land(self: LocalWeights, arriving: str) -> None:
        if arriving == name and left[0]:
            left[0] -= 1
            before()
            raise optimd.ConnectionFailed("cut by the test")
        land(self, arriving)

    with monkeypatch.context() as patched:
        patched.setattr(LocalWeights, "land", break_or_land)
        yield
