"""RemoteOptimizer on sessions that schedule, clip, accumulate, scale and average, and that keep a model's buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_references import deviation, gradients, parameters, run, two_groups
from torch import nn

import optimd
from optimd import errors

Remote = Callable[..., optimd.RemoteOptimizer]


def same(ours: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> bool:
    return all(deviation(p.detach(), theirs[name].detach()) <= 1e-6 for name, p in ours.items())


def test_the_servers_schedule_and_clip_are_torchs(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    schedule = {"name": "step", "step_size": 2, "gamma": 0.5}
    opt = remote(two_groups(ours, lr=0.05), "sgd", lr=0.1, schedule=schedule, clip={"max_norm": 1.0})
    local = torch.optim.SGD(two_groups(theirs, lr=0.05), lr=0.1)
    steps = torch.optim.lr_scheduler.StepLR(local, 2, 0.5)
    run(opt, ours, 5)
    for _ in gradients(theirs, 5):
        nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        local.step()
        steps.step()
    assert same(ours, theirs)
    assert [step.lr for step in opt.session.history()] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert opt.param_groups[0]["lr"] == 0.1


def test_maximize_goes_along_the_gradient(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(ours.items(), "adamw", maximize=True)
    run(opt, ours, 5)
    run(torch.optim.AdamW(theirs.items(), maximize=True), theirs, 5)
    assert same(ours, theirs)
    opt.param_groups[0]["maximize"] = False
    with pytest.raises(ValueError, match="fixed when it is created"):
        run(opt, ours, 1)
    with pytest.raises(ValueError, match="some parameter groups maximize"):
        remote(two_groups(parameters(), maximize=True), "sgd")


def test_pushes_that_make_no_step_leave_the_weights_alone(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(ours.items(), "adamw", accumulate={"steps": 3})
    outcomes = []
    for _ in gradients(ours, 6):
        before = {name: p.detach().clone() for name, p in ours.items()}
        opt.step()
        assert opt.receipt is not None
        outcomes.append(opt.receipt.outcome)
        assert same(ours, {name: nn.Parameter(p) for name, p in before.items()}) == (outcomes[-1] == "buffered")
    assert outcomes == ["buffered", "buffered", "applied"] * 2
    local, sums = torch.optim.AdamW(theirs.items()), {}
    for i, _ in enumerate(gradients(theirs, 6)):
        sums = {name: p.grad + (sums[name] if i % 3 else 0) for name, p in theirs.items()}
        if i % 3 == 2:
            for name, p in theirs.items():
                p.grad = sums[name] / 3
            local.step()
    assert same(ours, theirs)


def test_the_loss_is_scaled_as_the_server_says(remote: Remote) -> None:
    ours, theirs = parameters(), parameters()
    settings = {"init_scale": 8.0, "growth_interval": 2}
    opt = remote(ours.items(), "adamw", loss_scale=settings)
    scales = []
    for i, _ in enumerate(gradients(ours, 5)):
        scales.append(opt.loss_scale)
        for p in ours.values():
            p.grad *= opt.loss_scale
        if i == 3:
            ours["bias"].grad.fill_(torch.inf)
        opt.step()
    assert scales == [8, 8, 16, 16, 8]
    local = torch.optim.AdamW(theirs.items())
    for i, _ in enumerate(gradients(theirs, 5)):
        if i != 3:
            local.step()
    assert same(ours, theirs)
    assert remote(parameters().items()).loss_scale == 1


def test_who_attaches_knows_the_scale_whatever_was_skipped(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", loss_scale={"init_scale": 8.0})
    scales = []
    for finite in (False, True, False, False):
        for _ in gradients(params, 1):
            if not finite:
                params["bias"].grad.fill_(torch.nan)
            opt.step()
        attached = remote(parameters().items(), session=opt.session.id)
        scales.append(attached.loss_scale)
        assert opt.loss_scale == attached.loss_scale
    assert scales == [4, 4, 2, 1]


def test_averages_are_lent_to_the_parameters(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", lr=0.1, ema={"decay": 0.5}, swa={})
    run(opt, params, 3)
    etag, before = opt.session.etag, {name: p.detach().clone() for name, p in params.items()}
    wanted = {name: torch.from_numpy(array) for name, array in opt.session.pull(weights="ema").items()}
    with opt.averaged("ema"):
        assert all(torch.equal(p, wanted[name]) for name, p in params.items())
        assert not torch.equal(params["bias"], before["bias"])
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    run(opt, params, 1)
    # Nothing was put: lending changes nothing on the server.
    assert (etag, opt.session.etag) == ("3.1", "4.1")
    with pytest.raises(RuntimeError, match="inside"), opt.averaged("swa"):
        raise RuntimeError("inside")
    with pytest.raises(errors.InvalidField):
        opt.averaged("eval").__enter__()


def test_an_edit_before_an_average_is_lent_is_still_sent(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", lr=0.0, ema={})
    run(opt, params, 1)
    with torch.no_grad():
        params["bias"].fill_(7.0)
    with opt.averaged("ema"):
        assert not torch.equal(params["bias"], torch.full((11,), 7.0))
    run(opt, params, 1)
    assert (opt.session.pull()["bias"] == 7.0).all()


def test_the_recipe_makes_two_groups_that_torch_can_load(remote: Remote) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    theirs = copy.deepcopy(ours)
    opt = remote(ours.named_parameters(), "adamw", lr=0.1, weight_decay=0.5, groups="no_decay")
    assert [group["param_names"] for group in opt.param_groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "1.weight", "1.bias", "2.bias"],
    ]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.0]
    named = dict(theirs.named_parameters())
    local = torch.optim.AdamW(
        [
            {"params": [(n, named[n]) for n in g["param_names"]], "weight_decay": g["weight_decay"]}
            for g in opt.param_groups
        ],
        lr=0.1,
    )
    for model, optimizer in ((ours, opt), (theirs, local)):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    assert same(dict(ours.named_parameters()), named)
    local.load_state_dict(opt.state_dict())
    opt.load_state_dict(local.state_dict())
    with pytest.raises(ValueError, match="makes the groups"):
        remote(two_groups(parameters()), groups="no_decay")
    with pytest.raises(ValueError, match="leave the recipe out"):
        remote(ours.named_parameters(), groups="no_decay", session=opt.session.id)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int) -> None:
    for i in range(steps):
        opt.zero_grad()
        (model(torch.arange(12.0).reshape(4, 3) * (i + 1)) ** 3).sum().backward()
        opt.step()


@pytest.mark.parametrize("method", [False, True])
def test_buffers_are_pushed_with_each_step_and_pulled_on_attaching(remote: Remote, method: bool) -> None:
    first, second = Normed(), Normed()
    opt = remote(first.named_parameters(), "sgd", buffers=first.named_buffers if method else first.named_buffers())
    train(first, opt, 3)
    held = opt.session.pull()
    assert held["norm.num_batches_tracked"] == 3
    torch.testing.assert_close(torch.from_numpy(held["norm.running_mean"]), first.norm.running_mean, rtol=0, atol=0)
    other = remote(second.named_parameters(), session=opt.session.id, buffers=second.named_buffers())
    assert second.state_dict().keys() == first.state_dict().keys()
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
        assert tensor.dtype is first.state_dict()[name].dtype
    train(second, other, 1)
    opt.pull_weights()
    assert first.norm.num_batches_tracked == 4
    assert torch.equal(first.norm.running_var, second.norm.running_var)


def test_buffers_of_a_push_that_is_no_step_stay_local(remote: Remote) -> None:
    model = Normed()
    opt = remote(model.named_parameters(), "sgd", buffers=model.named_buffers(), accumulate={"steps": 2})
    train(model, opt, 3)
    assert (model.norm.num_batches_tracked, opt.session.pull()["norm.num_batches_tracked"]) == (3, 2)
    train(model, opt, 1)
    assert (model.norm.num_batches_tracked, opt.session.pull()["norm.num_batches_tracked"]) == (4, 4)


def test_buffers_are_part_of_what_must_agree(remote: Remote) -> None:
    model = Normed()
    opt = remote(model.named_parameters(), "sgd", buffers=model.named_buffers())
    train(model, opt, 1)
    with pytest.raises(ValueError, match=r"buffer 'norm.running_mean' is only there"):
        remote(model.named_parameters(), session=opt.session.id)
    with pytest.raises(ValueError, match="buffer 'extra' is only here"):
        remote(
            model.named_parameters(),
            session=opt.session.id,
            buffers=[*model.named_buffers(), ("extra", torch.ones(1))],
        )
    with pytest.raises(TypeError, match=r"'c' is of torch.complex64"):
        remote(model.named_parameters(), "sgd", buffers={"c": torch.ones(1, dtype=torch.complex64)})


def test_attaching_with_the_same_arguments_does_not_begin_the_schedule_anew(remote: Remote) -> None:
    params = parameters()
    schedule: dict[str, Any] = {"name": "cosine", "total_steps": 10, "warmup_steps": 4}
    opt = remote(params.items(), "sgd", lr=1.0, schedule=schedule, ema={"decay": 0.9})
    run(opt, params, 4)
    again = remote(parameters().items(), "sgd", session=opt.session.id, schedule=schedule, ema={"decay": 0.9})
    assert [event["kind"] for event in again.session.events()].count("changed") == 0
    changed = remote(parameters().items(), session=opt.session.id, schedule={**schedule, "total_steps": 20})
    assert changed.session.info["schedule"]["total_steps"] == 20
    with pytest.raises(ValueError, match=r"ema .*0.9.*fixed when a session is created"):
        remote(parameters().items(), session=opt.session.id, ema={"decay": 0.5})
    with pytest.raises(ValueError, match="fixed when it is created"):
        remote(parameters().items(), session=opt.session.id, maximize=True)


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_smaller_state_is_asked_for_and_comes_as_what_torch_would_have(remote: Remote, state_dtype: Any) -> None:
    ours, theirs = parameters(), parameters()
    opt = remote(ours.items(), "adamw", lr=0.01, state_dtype=state_dtype)
    run(opt, ours, 3)
    run(torch.optim.AdamW(theirs.items(), lr=0.01), theirs, 3)
    assert opt.session.info["state_dtype"] == state_dtype
    assert all(deviation(p.detach(), theirs[name].detach()) < 1e-2 for name, p in ours.items())
    saved = opt.state_dict()
    assert saved["state"][2]["exp_avg"].dtype is torch.float32
    opt.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"state_dtype .* fixed when a session is created"):
        remote(parameters().items(), session=opt.session.id, state_dtype="f32")
