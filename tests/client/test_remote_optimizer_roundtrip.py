"""Every optimizer that torch has too: training moves from the server to torch, and back, in the middle."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from remote_references import LOCAL, deviation
from torch import nn

import optimd

Remote = Callable[..., optimd.RemoteOptimizer]
Params = dict[str, nn.Parameter]

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("adadelta", {"weight_decay": 0.1}),
    ("rmsprop", {"centered": True, "momentum": 0.5}),
    ("rprop", {"etas": (0.4, 1.5)}),
    ("adam", {"amsgrad": True}),
    ("adamw", {"weight_decay": 0.1}),
    ("adamax", {}),
    ("nadam", {"momentum_decay": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("radam", {}),
    ("asgd", {"lambd": 0.1, "t0": 2}),
    ("adafactor", {"lr": 0.1, "weight_decay": 0.1}),
    ("muon", {"lr": 0.1}),
]
every_optimizer = pytest.mark.parametrize(("optimizer", "settings"), SETTINGS, ids=lambda value: str(value)[:9])


def parameters() -> Params:
    generator = torch.Generator().manual_seed(2)
    shapes = {"wide": (3, 7), "tall": (8, 2), "square": (4, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def groups(params: Params, optimizer: str, **of_second: Any) -> list[dict[str, Any]]:
    pairs = list(params.items())
    if optimizer != "muon":  # which takes nothing but matrices
        pairs.append(("bias", params.setdefault("bias", nn.Parameter(torch.linspace(-1, 1, 5)))))
    return [{"params": pairs[:2]}, {"params": pairs[2:], **of_second}]


def gradients(params: Params, seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator) * 0.5
        yield


def run(optimizer: torch.optim.Optimizer, params: Params, seed: int) -> None:
    for _ in gradients(params, seed):
        optimizer.step()


def through_a_file(document: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(document, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copy_weights(to: Params, of: Params) -> None:
    with torch.no_grad():
        for name, param in to.items():
            param.copy_(of[name])


def apart(ours: Params, theirs: Params) -> float:
    return max(deviation(param.detach(), theirs[name].detach()) for name, param in ours.items())


def test_the_table_has_every_optimizer_of_torch_that_the_server_has(server_url: str) -> None:
    with optimd.Client(server_url) as client:
        served = {info["name"] for info in client.optimizers()}
    of_torch = {name.lower() for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    # LBFGS evaluates the loss several times a step, and SparseAdam's gradients are sparse.
    assert {name for name, _ in SETTINGS} == (served & of_torch) - {"sparseadam", "lbfgs"}


@every_optimizer
def test_torch_goes_on_where_the_server_stopped(remote: Remote, optimizer: str, settings: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(groups(ours, optimizer, lr=0.05), optimizer, **settings)
    run(opt, ours, 1)
    local = LOCAL[optimizer](groups(theirs, optimizer), **settings)
    local.load_state_dict(through_a_file(opt.state_dict()))
    copy_weights(theirs, ours)
    run(opt, ours, 2)
    run(local, theirs, 2)
    assert apart(ours, theirs) <= 1e-6
    assert apart(ours, parameters() | {"bias": nn.Parameter(torch.linspace(-1, 1, 5))}) > 1e-3


@every_optimizer
def test_the_server_goes_on_where_torch_stopped(remote: Remote, optimizer: str, settings: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    local = LOCAL[optimizer](groups(theirs, optimizer, lr=0.05), **settings)
    run(local, theirs, 1)
    opt = remote(groups(ours, optimizer), optimizer, **settings)
    opt.load_state_dict(through_a_file(local.state_dict()))
    copy_weights(ours, theirs)
    run(opt, ours, 2)
    run(local, theirs, 2)
    assert apart(ours, theirs) <= 1e-6
    # And what came back is what torch would have: every name of every parameter.
    got, wanted = opt.state_dict()["state"], local.state_dict()["state"]
    assert {i: set(names) for i, names in got.items()} == {i: set(names) for i, names in wanted.items()}


@every_optimizer
def test_torch_begins_with_the_state_of_a_session_that_has_not_begun(
    remote: Remote, optimizer: str, settings: dict[str, Any]
) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(groups(ours, optimizer), optimizer, **settings)
    local = LOCAL[optimizer](groups(theirs, optimizer), **settings)
    local.load_state_dict(through_a_file(opt.state_dict()))
    run(opt, ours, 1)
    run(local, theirs, 1)
    assert apart(ours, theirs) <= 1e-6


@pytest.mark.parametrize("optimizer", ["prodigy", "schedule_free_adamw", "schedule_free_sgd"])
def test_what_a_session_remembers_of_a_group_goes_to_the_next_session(remote: Remote, optimizer: str) -> None:
    first, second = parameters(), parameters()
    opt, other = (remote(groups(params, optimizer), optimizer) for params in (first, second))
    run(opt, first, 1)
    saved = through_a_file(opt.state_dict())
    assert all(any(group["numbers"].values()) for group in saved["param_groups"])
    other.load_state_dict(saved)
    copy_weights(second, first)
    run(opt, first, 2)
    run(other, second, 2)
    assert all(torch.equal(param, second[name]) for name, param in first.items())
    assert all("numbers" not in group for each in (opt, other) for group in each.param_groups)


def test_numbers_that_differ_within_a_group_are_refused(remote: Remote) -> None:
    theirs = parameters()
    local = torch.optim.NAdam(theirs.items())
    run(local, theirs, 1)
    saved = local.state_dict()
    saved["state"][1]["mu_product"] = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"mu_product of .* for 'wide' and of 0.5 for 'tall'"):
        remote(parameters().items(), "nadam").load_state_dict(saved)


@pytest.mark.parametrize("ours_is_local", [True, False])
def test_the_direction_of_training_is_part_of_the_state(remote: Remote, ours_is_local: bool) -> None:
    params, others = parameters(), parameters()
    up, down = remote(params.items(), "sgd", lr=0.1, maximize=True), remote(others.items(), "sgd", lr=0.1)
    saved = torch.optim.SGD(others.values(), maximize=True).state_dict() if ours_is_local else up.state_dict()
    assert saved["param_groups"][0]["maximize"]
    up.load_state_dict(saved)
    with pytest.raises(ValueError, match="0 maximizes, and this session minimizes"):
        down.load_state_dict(saved)
