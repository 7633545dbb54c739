"""Pushes to a session whose buffers lie on a device, beside the same pushes to one on the host."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch

from optimd_service.errors import InsufficientMemory, InvalidField
from optimd_service.optim import on_device
from optimd_service.optim.update import Here
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.creation import initialise
from optimd_service.session.description import read_description
from optimd_service.session.plan import SCRATCH, Plan
from optimd_service.session.push import Push
from optimd_service.session.rehearsal import _Zeros
from optimd_service.store.contract import StoredState
from optimd_service.store.device import DeviceStore
from optimd_service.types import Layout, Receipt

PUSHES = 50
SHAPES = {"embed": [50, 20], "bias": [7], "weight": [30, 40], "scalar": []}
NORMAL = {"name": "normal", "std": 0.5}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"lr": 0.01, "amsgrad": True},
    "adamw": {"lr": 0.01},
    "adagrad": {"lr": 0.1, "initial_accumulator_value": 0.1},
    "rmsprop": {"momentum": 0.5, "centered": True, "weight_decay": 0.01},
    "lion": {"lr": 0.001, "weight_decay": 0.1},
}
POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "groups": {"groups": [{"match": ["bias"], "weight_decay": 0.0, "lr": 0.02}]},
    "max_norm": {"clip": {"max_norm": 0.5}},
    "max_norm of each tensor": {"clip": {"max_norm": 0.2, "per": "tensor"}},
    "max_norm, largest element": {"clip": {"max_norm": 0.5, "norm_type": "inf"}},
    "max_norm, p of 3": {"clip": {"max_norm": 0.5, "norm_type": 3.0}},
    "clip_value": {"clip": {"clip_value": 0.3}},
    "maximize": {"maximize": True},
    "mean of three": {"accumulate": {"steps": 3}},
    "sum of two": {"accumulate": {"steps": 2, "mean": False}},
    "loss_scale": {"loss_scale": {"init_scale": 8.0, "growth_interval": 5}},
    "ema": {"ema": {"decay": 0.9, "warmup": True}},
    "swa": {"swa": {"start": 10, "every": 3}},
    "zero": {"nonfinite": "zero"},
    "skip": {"nonfinite": "skip"},
    "schedule": {"schedule": {"name": "cosine", "total_steps": 40, "warmup_steps": 5}},
    "grad_dtype": {"grad_dtype": "BF16"},
}


class Given(_Zeros):
    """A push whose gradients are these, shape [numel]."""

    def __init__(self, grads: torch.Tensor) -> None:
        self.grads = grads

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:  # noqa: ARG002
        flat.copy_(self.grads)


def described(optimizer: str, hyper: Mapping[str, Any], where: str, **policy: Any) -> Blueprint:
    tensors = [{"name": name, "shape": shape, "init": NORMAL} for name, shape in SHAPES.items()]
    said = {"optimizer": {"name": optimizer, **hyper}, "tensors": tensors, "storage": {"device": where}, **policy}
    return Blueprint.draw(read_description(said), None)


def created(blueprint: Blueprint) -> StoredState:
    plan = blueprint.plan
    store = DeviceStore(2**30)
    state = store.create("s", plan.layout, plan.buffers, plan.grads, plan.policy.device)
    initialise(blueprint, state)
    return state


def push(state: StoredState, plan: Plan, grads: torch.Tensor) -> Receipt:
    return Push("s", Given(grads), None, state, plan).apply(Here(1500))


def gradients(numel: int, *, damaged: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-3, 0, numel)
    flats = [torch.randn(numel, generator=generator) * size for _ in range(PUSHES)]
    for flat in flats[::7] if damaged else ():
        flat[numel // 2] = math.nan
    return flats


def numbers_of(receipt: Receipt) -> dict[str, float]:
    names = ("grad_norm", "clip_scale", "update_norm", "param_norm", "loss_scale")
    return {name: value for name in names if (value := getattr(receipt, name)) is not None}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_receipts_weights_and_state_are_the_hosts(device: Any, optimizer: str, policy: str) -> None:
    given = POLICIES[policy]
    here, there = (described(optimizer, OPTIMIZERS[optimizer], where, **given) for where in ("cpu", "cuda"))
    ours, theirs = created(there), created(here)
    damaged = given.get("nonfinite") is not None or "loss_scale" in given
    outcomes = set()
    for flat in gradients(here.layout.numel, damaged=damaged):
        first, second = push(ours, there.plan, flat), push(theirs, here.plan, flat)
        assert (first.outcome, first.step, first.lr) == (second.outcome, second.step, second.lr)
        assert numbers_of(first) == pytest.approx(numbers_of(second), rel=2 * device.tolerance)
        outcomes.add(first.outcome)
    assert "applied" in outcomes
    got, wanted = ours.read_state(), theirs.read_state()
    assert got.numbers.keys() == wanted.numbers.keys()
    assert got.state.keys() - {SCRATCH} == wanted.state.keys()
    assert not got.params.is_cpu
    pairs = {"params": (got.params, wanted.params)} | {n: (got.state[n], wanted.state[n]) for n in wanted.state}
    for name, (mine, others) in pairs.items():
        assert not mine.is_cpu
        largest = max(1.0, others.abs().max().item())
        assert (mine.to("cpu") - others).abs().max().item() <= device.tolerance * largest, name


def test_initialisers_draw_what_they_draw_on_the_host(device: Any) -> None:
    here, there = (created(described("sgd", {}, where, seed=7)) for where in ("cpu", "cuda"))
    assert torch.equal(there.read_state().params.to("cpu"), here.read_state().params)
    assert here.read_state().params.abs().max() > 0


def test_an_update_works_in_memory_that_was_taken_when_the_session_was_created(device: Any) -> None:
    blueprint = described("adamw", {}, "cuda")
    state = created(blueprint)
    assert blueprint.plan.buffers[SCRATCH].numel == on_device.scratch_numel(blueprint.layout.numel)
    before = state.held_bytes
    push(state, blueprint.plan, torch.ones(blueprint.layout.numel))
    assert (
        state.held_bytes
        == before
        == sum(size.nbytes for size in blueprint.plan.buffers.values()) + 8 * len(state.read_state().params)
    )


def test_gradients_that_would_leave_float32_when_squared_are_refused_and_change_nothing(device: Any) -> None:
    blueprint = described("adamw", {}, "cuda", nonfinite="skip")
    state = created(blueprint)
    before = state.read_state().params.to("cpu")
    receipt = push(state, blueprint.plan, torch.full((blueprint.layout.numel,), 1e18))
    assert receipt.outcome == "skipped_nonfinite"
    assert torch.equal(state.read_state().params.to("cpu"), before)
    assert push(state, blueprint.plan, torch.full((blueprint.layout.numel,), 1e16)).outcome == "applied"


@pytest.mark.parametrize("where", ["cuda", "cuda:0"])
def test_no_device_is_found_where_there_is_none(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InvalidField) as refusal:
        created(described("sgd", {}, where))
    assert refusal.value.evidence == {"field": "storage.device"}


def test_a_device_that_torch_does_not_see_is_refused(device: Any) -> None:
    with pytest.raises(InvalidField, match="it sees cuda:0"):
        created(described("sgd", {}, "cuda:99"))


def test_a_session_larger_than_the_devices_memory_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**28 + 1000, 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    with pytest.raises(InsufficientMemory) as refusal:
        created(described("sgd", {}, "cuda"))
    assert refusal.value.evidence["available_bytes"] == 1000


def test_memory_that_torch_holds_unused_counts_as_free(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**28, 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2**27)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    assert created(described("sgd", {}, "cuda")).held_bytes > 0


def no_room(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError


def test_memory_that_somebody_else_was_faster_to_take_is_told(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimd_service.store.accelerator.Accelerator.zeros", no_room)
    with pytest.raises(InsufficientMemory):
        created(described("sgd", {}, "cuda"))


@pytest.mark.parametrize("where", ["torch.linalg.vector_norm", "torch.empty_like"])
def test_a_push_that_finds_no_memory_changes_nothing(device: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    blueprint = described("adamw", {}, "cuda")
    state = created(blueprint)
    grads = torch.ones(blueprint.layout.numel)
    reader = state.snapshot()  # so that the update goes to a copy
    before = state.read_state().params.to("cpu")
    with monkeypatch.context() as patched:
        patched.setattr(where, no_room)
        with pytest.raises(torch.OutOfMemoryError):
            push(state, blueprint.plan, grads)
    assert torch.equal(state.read_state().params.to("cpu"), before)
    reader.release()
    assert push(state, blueprint.plan, grads).step == 1
