"""State dicts between a RemoteOptimizer and the local optimizer of the same name, in both directions."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_references import LOCAL, deviation, parameters, run, two_groups
from torch import nn

import optimd
from optimd import errors

Remote = Callable[..., optimd.RemoteOptimizer]

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("rmsprop", {}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("adam", {"amsgrad": True}),
    ("adamw", {}),
    ("lion", {"lr": 1e-3}),
]
every_setting = pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)


def through_a_file(document: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(document, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def copy_weights(to: dict[str, nn.Parameter], of: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, param in to.items():
            param.copy_(of[name])


@every_setting
def test_a_local_optimizer_goes_on_from_a_remote_one(remote: Remote, optimizer: str, settings: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(two_groups(ours, lr=0.01), optimizer, **settings)
    run(opt, ours, 5)
    opt.param_groups[0]["lr"] /= 2
    local = LOCAL[optimizer](two_groups(theirs), **settings)
    local.load_state_dict(through_a_file(opt.state_dict()))
    copy_weights(theirs, ours)
    assert [group["lr"] for group in local.param_groups] == [group["lr"] for group in opt.param_groups]
    run(opt, ours, 20)
    run(local, theirs, 20)
    assert all(deviation(p.detach(), theirs[n].detach()) <= 1e-6 for n, p in ours.items())


@every_setting
@pytest.mark.parametrize("begun", [False, True])
def test_a_remote_optimizer_goes_on_from_a_local_one(
    remote: Remote, optimizer: str, settings: dict[str, Any], begun: bool
) -> None:
    ours, theirs = parameters(), parameters()
    local = LOCAL[optimizer](two_groups(theirs, lr=0.01, weight_decay=0.1), **settings)
    run(local, theirs, 5)
    opt = remote(two_groups(ours), optimizer, **settings)
    if begun:
        run(opt, ours, 3)
    opt.load_state_dict(through_a_file(local.state_dict()))
    copy_weights(ours, theirs)
    assert [group["lr"] for group in opt.param_groups] == [settings.get("lr", local.defaults["lr"]), 0.01]
    assert opt.session.refresh()["hyperparameters"]["group1"]["weight_decay"] == 0.1
    run(opt, ours, 20)
    run(local, theirs, 20)
    assert all(deviation(p.detach(), theirs[n].detach()) <= 1e-6 for n, p in ours.items())


@every_setting
def test_a_remote_optimizer_goes_on_from_another_with_the_same_bits(
    remote: Remote, optimizer: str, settings: dict[str, Any]
) -> None:
    first, second = parameters(), parameters()
    opt = remote(two_groups(first, lr=0.01), optimizer, **settings)
    run(opt, first, 5)
    other = remote(two_groups(second), optimizer, **settings)
    other.load_state_dict(opt.state_dict())
    copy_weights(second, first)
    run(opt, first, 5)
    run(other, second, 5)
    assert all(torch.equal(param, second[name]) for name, param in first.items())


def test_moments_of_coarse_parameters_keep_their_precision(remote: Remote) -> None:
    params = {"w": nn.Parameter(torch.linspace(-1, 1, 64).bfloat16())}
    opt, other = remote(params.items()), remote(params.items())
    params["w"].grad = torch.linspace(0.1, 0.7, 64).bfloat16()
    opt.step()
    before = opt.state_dict()["state"][0]
    assert before["exp_avg"].dtype is torch.float32
    assert not torch.equal(before["exp_avg"], before["exp_avg"].bfloat16().float())
    other.load_state_dict(opt.state_dict())
    after = other.state_dict()["state"][0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_fresh_state_dict_is_empty_and_loads_without_a_trace(remote: Remote) -> None:
    opt = remote(parameters().items())
    assert opt.state_dict()["state"] == {}
    opt.load_state_dict(opt.state_dict())
    assert opt.session.etag == "0.0"
    assert [event["kind"] for event in opt.session.events()] == ["created"]


def test_loading_moments_gives_a_new_session_its_weights_too(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items())
    opt.load_state_dict(adamw_state())
    opt.pull_weights()
    assert all(torch.equal(p, parameters()[name]) for name, p in params.items())
    with pytest.raises(RuntimeError, match="before the first step"):
        opt.add_param_group({"params": [("late", nn.Parameter(torch.ones(1)))]})


def test_loading_an_empty_state_starts_the_moments_anew(remote: Remote) -> None:
    params, fresh = parameters(), parameters()
    opt, new = remote(params.items()), remote(fresh.items())
    empty = opt.state_dict()
    run(opt, params, 3)
    opt.load_state_dict(empty)
    assert opt.state_dict()["state"] == {}
    copy_weights(fresh, params)
    run(opt, params, 3)
    run(new, fresh, 3)
    assert all(torch.equal(param, fresh[name]) for name, param in params.items())


def test_a_state_dict_that_comes_too_late_leaves_the_hyperparameters_alone(remote: Remote) -> None:
    params, others = parameters(), parameters()
    opt = remote(two_groups(params, lr=0.05), "adamw", lr=0.1)
    run(opt, params, 1)
    saved = opt.state_dict()
    run(remote(two_groups(others), session=opt.session.id), others, 1)
    saved["param_groups"][0]["lr"] = 0.7
    with pytest.raises(errors.StaleStep):
        opt.load_state_dict(saved)
    held = opt.session.refresh()["hyperparameters"]
    assert [values["lr"] for values in held.values()] == [0.05, 0.1]
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.05]


def test_state_dict_hooks_run_as_they_do_locally(remote: Remote) -> None:
    params, calls = parameters(), []
    opt = remote(params.items())
    run(opt, params, 1)
    opt.register_state_dict_pre_hook(lambda _: calls.append("saving"))
    opt.register_state_dict_post_hook(lambda _, saved: {**saved, "note": len(saved["state"])})
    opt.register_load_state_dict_pre_hook(lambda _, saved: calls.append(saved.pop("note")))
    opt.register_load_state_dict_pre_hook(lambda _, saved: {**saved, "state": {}})
    opt.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert calls == ["saving", len(params), "loaded"]
    assert opt.state_dict()["state"] == {}
    assert not opt.state


def adamw_state() -> dict[str, Any]:
    params = parameters()
    local = torch.optim.AdamW(params.items())
    run(local, params, 2)
    return local.state_dict()


def partly_missing(saved: dict[str, Any]) -> None:
    del saved["state"][3]


def steps_that_differ(saved: dict[str, Any]) -> None:
    saved["state"][3]["step"] += 1


def a_buffer_short(saved: dict[str, Any]) -> None:
    del saved["state"][3]["exp_avg"]


def another_shape(saved: dict[str, Any]) -> None:
    saved["state"][5]["exp_avg"] = torch.zeros(10)


def another_optimizer(saved: dict[str, Any]) -> None:
    del saved["param_groups"][0]["betas"]


def coupled_decay(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["decoupled_weight_decay"] = False


def maximizing(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["maximize"] = True


def more_buffers(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["amsgrad"] = True


def other_groups(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["params"].pop()


@pytest.mark.parametrize(
    ("spoil", "error", "reason"),
    [
        (partly_missing, ValueError, "no step of 'transposed'"),
        (steps_that_differ, ValueError, "step of 2 for 'scale' and of 3 for 'transposed'"),
        (a_buffer_short, errors.TensorMismatch, "transposed.exp_avg"),
        (another_shape, errors.ShapeMismatch, "bias.exp_avg"),
        (another_optimizer, ValueError, "no 'betas'"),
        (coupled_decay, ValueError, "is of 'adam', not of 'adamw'"),
        (maximizing, ValueError, "maximizes"),
        (more_buffers, errors.InvalidHyperparameter, "amsgrad"),
        (other_groups, ValueError, "other parameter groups"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(
    remote: Remote, spoil: Callable[[dict[str, Any]], None], error: type[Exception], reason: str
) -> None:
    params, saved = parameters(), adamw_state()
    opt = remote(params.items())
    run(opt, params, 1)
    before, etag, groups = opt.state_dict(), opt.session.etag, opt.param_groups
    spoil(saved)
    with pytest.raises(error, match=reason):
        opt.load_state_dict(saved)
    assert (opt.session.refresh()["etag"], opt.param_groups) == (etag, groups)
    after = opt.state_dict()
    assert torch.equal(after["state"][2]["exp_avg"], before["state"][2]["exp_avg"])
    run(opt, params, 1)
