"""RemoteOptimizer beside the local optimizer of the same name: weights, schedules, hooks and closures."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from remote_references import LOCAL, deviation, gradients, parameters, run, two_groups
from torch import nn
from torch.optim import lr_scheduler as lrs

import optimd
from optimd import errors

Remote = Callable[..., optimd.RemoteOptimizer]

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("adam", {"amsgrad": True}),
    ("adamw", {}),
    ("lion", {"lr": 1e-3}),
]
OF_SECOND_GROUP = {"lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_weights_and_state_are_the_local_optimizers_after_100_steps(
    remote: Remote, optimizer: str, settings: dict[str, Any]
) -> None:
    ours, again, theirs = parameters(), parameters(), parameters()
    opt = remote(two_groups(ours, **OF_SECOND_GROUP), optimizer, **settings)
    twin = remote(two_groups(again, **OF_SECOND_GROUP), optimizer, **settings)
    local = LOCAL[optimizer](two_groups(theirs, **OF_SECOND_GROUP), **settings)
    for each, params in ((opt, ours), (twin, again), (local, theirs)):
        run(each, params, 100)

    for name, param in ours.items():
        assert deviation(param.detach(), theirs[name].detach()) <= 1e-6, name
        assert torch.equal(param, again[name])
        assert not torch.equal(param, parameters()[name]) or not param.numel()
    got, wanted = opt.state_dict()["state"], local.state_dict()["state"]
    assert {i: set(of_param) for i, of_param in got.items()} == {i: set(of_param) for i, of_param in wanted.items()}
    for i, of_param in wanted.items():
        for name, tensor in of_param.items():
            assert deviation(got[i][name], tensor) <= 1e-6, (i, name)
    assert opt.receipt is not None
    assert (opt.receipt.step, opt.receipt.lr) == (100, opt.param_groups[0]["lr"])


@pytest.mark.parametrize(("optimizer", "settings"), [*SETTINGS, ("adam", {}), ("rmsprop", {})])
def test_param_groups_have_what_the_local_ones_have(remote: Remote, optimizer: str, settings: dict[str, Any]) -> None:
    opt = remote(two_groups(parameters(), lr=0.5), optimizer, **settings)
    local = LOCAL[optimizer](two_groups(parameters(), lr=0.5), **settings)
    for ours, theirs in zip(opt.param_groups, local.param_groups, strict=True):
        names = ours.keys() - {"params"}
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
        assert {"lr", "weight_decay", "param_names"} <= names
    assert opt.defaults.items() <= local.defaults.items()
    assert "Parameter Group 1" in repr(opt)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lrs.StepLR(o, 3),
    "lambda": lambda o: lrs.LambdaLR(o, [lambda k: 1 / (k + 1), lambda k: 0.9**k]),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "one-cycle": lambda o: lrs.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=30),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=4),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=2),
    "sequential": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, total_iters=4), lrs.ExponentialLR(o, 0.9)], milestones=[5]
    ),
}


@pytest.mark.parametrize(
    "optimizer", [("sgd", {"lr": 0.1, "momentum": 0.9}), ("adamw", {"lr": 0.1})], ids=lambda o: o[0]
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_steer_it_as_they_do_a_local_one(
    remote: Remote, optimizer: tuple[str, dict[str, Any]], scheduler: str
) -> None:
    name, settings = optimizer
    ours, theirs = parameters(), parameters()
    opt = remote(two_groups(ours, lr=0.05), name, **settings)
    local = LOCAL[name](two_groups(theirs, lr=0.05), **settings)
    rates = []
    for each, params in ((opt, ours), (local, theirs)):
        schedule = SCHEDULERS[scheduler](each)
        rates.append([])
        for _ in gradients(params, 20):
            each.step()
            schedule.step(*[1.0] * (scheduler == "plateau"))
            rates[-1].append([group["lr"] for group in each.param_groups])
    assert rates[0] == rates[1]
    assert len({tuple(pair) for pair in rates[0]}) > 1
    assert all(deviation(p.detach(), theirs[n].detach()) <= 1e-6 for n, p in ours.items())
    # The rate of step n is what was set after step n − 1: the server used it, and recorded it.
    assert [step.lr for step in opt.session.history()][1:] == [pair[0] for pair in rates[0]][:-1]


def test_only_what_differs_from_the_session_is_sent(remote: Remote) -> None:
    params = parameters()
    opt = remote(two_groups(params, lr=0.5, initial_lr=7.0), "sgd", lr=torch.tensor(0.25))
    run(opt, params, 1)
    opt.param_groups[1]["lr"] = torch.tensor(0.125)
    run(opt, params, 1)
    opt.param_groups[0]["weight_decay"] = np.float32(0.5)
    run(opt, params, 1)
    first, second, third = (step.hyperparameters for step in opt.session.history())
    assert first is None
    assert second == {"groups": {"group1": {"lr": 0.125}}}
    assert third == {"weight_decay": 0.5, "groups": {"group1": {"lr": 0.125, "weight_decay": 0.0}}}


def test_a_closures_loss_is_returned_and_recorded(remote: Remote) -> None:
    model = nn.Linear(3, 1)
    opt = remote(model.named_parameters(), "sgd", lr=0.1)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert opt.receipt is not None
    assert opt.receipt.loss == loss.item()
    opt.step(loss=torch.tensor(0.5), num_examples=4)
    row = opt.session.recorded(2)
    assert (row.loss, row.num_examples) == (0.5, 4)


def test_step_hooks_run_around_the_step(remote: Remote) -> None:
    params, calls = parameters(), []
    opt = remote(params.items(), "sgd")
    opt.register_step_pre_hook(lambda o, _args, _kwargs: calls.append(("before", o.receipt)))
    opt.register_step_post_hook(lambda o, _args, _kwargs: calls.append(("after", o.receipt)))
    run(opt, params, 1)
    assert calls == [("before", None), ("after", opt.receipt)]


def test_a_grad_scaler_unscales_and_skips_as_it_does_locally(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    opt, local = remote(ours.items(), "adamw"), LOCAL["adamw"](theirs.items())
    for each, params in ((opt, ours), (local, theirs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for i, _ in enumerate(gradients(params, 5)):
            for p in params.values():
                p.grad = scaler.scale(p.grad)
            if i == 3:
                params["bias"].grad.fill_(torch.inf)
            scaler.step(each)
            scaler.update()
    assert opt.receipt is not None
    assert opt.receipt.step == 4
    assert all(deviation(p.detach(), theirs[n].detach()) <= 1e-6 for n, p in ours.items())


def test_a_step_the_server_skips_returns_and_says_so(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", nonfinite="skip")
    run(opt, params, 1)
    before = params["bias"].detach().clone()
    params["bias"].grad.fill_(torch.nan)
    opt.step()
    assert opt.receipt is not None
    assert (opt.receipt.outcome, opt.receipt.step) == ("skipped_nonfinite", 1)
    assert torch.equal(params["bias"], before)
    run(opt, params, 1)
    assert opt.receipt.step == 2


def test_groups_can_be_added_before_the_first_step_and_not_after(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    opt, local = (
        make([(n, p) for n, p in params.items() if n != "bias"], lr=0.1)
        for make, params in ((lambda *a, **k: remote(*a, "sgd", **k), ours), (LOCAL["sgd"], theirs))
    )
    replaced = opt.session.id
    for each, params in ((opt, ours), (local, theirs)):
        each.add_param_group({"params": [("bias", params["bias"])], "lr": 0.5})
        run(each, params, 3)
    assert all(deviation(p.detach(), theirs[n].detach()) <= 1e-6 for n, p in ours.items())
    with optimd.Client(opt._client.url) as client, pytest.raises(optimd.SessionNotFound):
        client.session(replaced)
    with pytest.raises(RuntimeError, match="before the first step"):
        opt.add_param_group({"params": [("late", nn.Parameter(torch.ones(1)))]})


def test_a_group_the_server_refuses_is_not_added(remote: Remote) -> None:
    opt = remote([nn.Parameter(torch.ones(2))], "sgd")
    session = opt.session.id
    with pytest.raises(errors.InvalidHyperparameter, match="lr"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1.0})
    assert (opt.session.id, len(opt.param_groups)) == (session, 1)


def test_it_is_neither_copied_nor_pickled(remote: Remote) -> None:
    opt = remote([nn.Parameter(torch.ones(2))], "sgd")
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            copied(opt)


def test_unknown_arguments_are_refused_by_name(remote: Remote) -> None:
    one = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="adamw has no hyperparameter 'momentum'; it has lr, betas"):
        remote([one], momentum=0.9)
    with pytest.raises(errors.OptimizerNotFound):
        remote([one], "no-such-optimizer")
    with pytest.raises(errors.InvalidHyperparameter, match="lr"):
        remote([one], lr=-1.0)
    with pytest.raises(ValueError, match="missing_grad"):
        remote([one], missing_grad="ignore")
    with optimd.Client() as client, pytest.raises(ValueError, match="client"):
        remote([one], client=client, url="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("params", "error", "reason"),
    [
        (torch.ones(2), TypeError, "one tensor"),
        ([], ValueError, "no parameter"),
        ([torch.ones(2, dtype=torch.int64)], TypeError, "'param.0' is of torch.int64"),
        ([("a", torch.ones(1)), ("a", torch.ones(1))], ValueError, "two parameters are named 'a'"),
        ([{"params": [("a", torch.ones(1))]}, {"params": [torch.ones(1)]}], ValueError, "with/without names"),
    ],
)
def test_parameters_that_cannot_be_held_are_refused(
    remote: Remote, params: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        remote(params)


def test_close_can_delete_the_session_and_leaves_a_given_client_open(server_url: str) -> None:
    with optimd.Client(server_url) as client:
        with optimd.RemoteOptimizer([nn.Parameter(torch.ones(2))], client=client, name="closed") as opt:
            assert opt.session.info["name"] == "closed"
        opt.close(delete=True)
        with pytest.raises(optimd.SessionNotFound):
            client.session(opt.session.id)
