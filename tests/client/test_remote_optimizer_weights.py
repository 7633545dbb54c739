"""Which side's weights count: edits made here, steps made there, attaching, gradients and dtypes of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_references import deviation, parameters, run, two_groups
from torch import nn

import optimd

Remote = Callable[..., optimd.RemoteOptimizer]


def ones(opt: optimd.RemoteOptimizer, params: dict[str, nn.Parameter], steps: int = 1) -> None:
    """Step with gradients of ones; at lr 1, SGD takes 1 from every weight."""
    for _ in range(steps):
        for p in params.values():
            p.grad = torch.ones_like(p)
        opt.step()


@torch.no_grad()
def in_place(params: dict[str, nn.Parameter]) -> None:
    for p in params.values():
        p.fill_(5.0)


def load_state_dict(params: dict[str, nn.Parameter]) -> None:
    nn.ParameterDict(params).load_state_dict({name: torch.full_like(p, 5.0) for name, p in params.items()})


def new_data(params: dict[str, nn.Parameter]) -> None:
    for p in params.values():
        p.data = torch.full_like(p, 5.0)


@torch.no_grad()
def only_one(params: dict[str, nn.Parameter]) -> None:
    for p in params.values():
        p.copy_(p.clone())
    params["scale"].fill_(5.0)


@pytest.mark.parametrize("edit", [in_place, load_state_dict, new_data, only_one])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_edited_between_steps_are_what_the_next_step_starts_from(
    remote: Remote, edit: Callable[[dict[str, nn.Parameter]], None], dtype: torch.dtype
) -> None:
    params = {name: nn.Parameter(p.detach().to(dtype)) for name, p in parameters().items()}
    opt = remote(params.items(), "sgd", lr=1.0)
    ones(opt, params, 2)
    edit(params)
    expected = {name: p.detach().clone() - 1 for name, p in params.items()}
    ones(opt, params)
    assert params["scale"].item() == 4.0
    assert all(deviation(p.detach(), expected[name]) <= 2**-7 for name, p in params.items())
    generation = opt.session.etag
    ones(opt, params)
    assert params["scale"].item() == 3.0
    assert (generation, opt.session.etag) == ("3.2", "4.2")


def test_an_edit_through_data_that_stays_in_place_is_sent_when_told(remote: Remote) -> None:
    params = {"w": nn.Parameter(torch.zeros(3))}
    opt = remote(params.items(), "sgd", lr=1.0)
    ones(opt, params)
    params["w"].data.fill_(5.0)
    opt.push_weights()
    ones(opt, params)
    assert params["w"].tolist() == [4.0, 4.0, 4.0]


def test_weights_are_received_in_the_parameters_own_memory(remote: Remote) -> None:
    params = parameters()
    addresses = {name: p.data_ptr() for name, p in params.items()}
    run(remote(params.items(), "sgd"), params, 2)
    assert {name: p.data_ptr() for name, p in params.items()} == addresses


def test_a_backward_pass_through_weights_that_have_been_replaced_fails(remote: Remote) -> None:
    w = nn.Parameter(torch.ones(3))
    opt = remote([w], "sgd", lr=1.0)
    loss = w.square().sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_other_dtypes_are_rounded_from_the_sessions(remote: Remote, dtype: torch.dtype) -> None:
    start = {name: p.detach().to(dtype) for name, p in parameters().items()}
    params = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    work = torch.float64 if dtype is torch.float64 else torch.float32
    masters = {name: nn.Parameter(tensor.to(work)) for name, tensor in start.items()}
    opt, local = remote(params.items(), lr=0.01), torch.optim.AdamW(masters.items(), lr=0.01)
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        for name, p in params.items():
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            masters[name].grad = p.grad.to(work)
        opt.step()
        local.step()
    assert opt.session.info["tensors"][0]["dtype"] == ("F64" if dtype is torch.float64 else "F32")
    for name, p in params.items():
        assert p.dtype is dtype
        assert deviation(p.detach().to(work), masters[name].detach()) <= max(torch.finfo(dtype).eps, 1e-12)


def test_a_mixture_with_float64_is_a_float32_session(remote: Remote) -> None:
    params = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2, dtype=torch.float64))}
    opt = remote(params.items(), "sgd", lr=1.0)
    ones(opt, params)
    assert {tensor["dtype"] for tensor in opt.session.info["tensors"]} == {"F32"}
    assert params["b"].tolist() == [0.0, 0.0]


def test_without_any_gradient_nothing_happens(remote: Remote) -> None:
    opt = remote(parameters().items())
    assert opt.step() is None
    assert opt.receipt is None
    assert opt.session.refresh()["etag"] == "0.0"


def test_a_missing_gradient_is_named_before_anything_is_sent(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items())
    params["bias"].grad = torch.ones(11)
    with pytest.raises(RuntimeError, match=r"'scale' has no gradient.*missing_grad='zero'"):
        opt.step()
    assert opt.session.refresh()["etag"] == "0.0"


def test_a_missing_gradient_can_be_zeros(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", lr=1.0, missing_grad="zero", weight_decay=0.5)
    params["bias"].grad = torch.ones(11)
    before = {name: p.detach().clone() for name, p in params.items()}
    opt.step()
    torch.testing.assert_close(params["bias"].detach(), before["bias"] / 2 - 1)
    torch.testing.assert_close(params["conv"].detach(), before["conv"] / 2)


def test_a_sparse_gradient_is_refused(remote: Remote) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    opt = remote(embedding.named_parameters(), "adamw")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="'weight' is sparse"):
        opt.step()


def test_an_attached_optimizer_goes_on_where_the_first_ended(remote: Remote) -> None:
    first, second, alone = parameters(), parameters(), parameters()
    opt = remote(two_groups(first, lr=0.01), "sgd", lr=0.1, momentum=0.9)
    run(opt, first, 3)
    with torch.no_grad():
        second["bias"].zero_()
    attached = remote(two_groups(second, weight_decay=0.25), session=opt.session.id, momentum=0.5, nonfinite="skip")
    assert attached.session.refresh()["nonfinite"] == "skip"
    assert all(torch.equal(p, first[name]) for name, p in second.items())
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in attached.param_groups] == [
        (0.1, 0.5, 0.0),
        (0.01, 0.5, 0.25),
    ]
    for group, momentum in zip(attached.param_groups, (0.9, 0.9), strict=True):
        group.update(momentum=momentum, weight_decay=0.0)
    run(attached, second, 3)
    uninterrupted = remote(two_groups(alone, lr=0.01), "sgd", lr=0.1, momentum=0.9)
    run(uninterrupted, alone, 3)
    run(uninterrupted, alone, 3)
    assert all(torch.equal(p, alone[name]) for name, p in second.items())
    with pytest.raises(RuntimeError, match="before the first step"):
        attached.add_param_group({"params": [("late", nn.Parameter(torch.ones(1)))]})


def test_a_session_of_another_kind_is_not_attached_to(remote: Remote) -> None:
    params = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(3))}
    session = remote(two_groups(params), "sgd").session.id
    wrong: list[tuple[Any, str]] = [
        ([("a", params["b"]), ("c", params["a"])], "'c' is only here; 'b' is only there; 'a' has shape"),
        (params.items(), "groups are not those.*'group1': \\['b'\\], 'default': \\['a'\\]"),
    ]
    for given, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            remote(given, session=session)
    with pytest.raises(ValueError, match="of 'sgd', not of 'adamw'"):
        remote(two_groups(params), "adamw", session=session)
    with pytest.raises(optimd.SessionNotFound):
        remote(two_groups(params), session="no-such-session")


def test_another_writers_step_is_noticed_and_pulled_on_demand(remote: Remote) -> None:
    first, second = ({"w": nn.Parameter(torch.zeros(2))} for _ in range(2))
    opt = remote(first.items(), "sgd", lr=1.0)
    ones(opt, first)
    other = remote(second.items(), session=opt.session.id)
    ones(other, second)
    opt.session.refresh()
    with pytest.raises(optimd.StaleStep):
        ones(opt, first)
    assert first["w"].tolist() == [-1.0, -1.0]
    opt.pull_weights()
    assert first["w"].tolist() == [-2.0, -2.0]
    ones(opt, first)
    assert first["w"].tolist() == [-3.0, -3.0]


def test_an_edit_never_overwrites_another_writers_step(remote: Remote) -> None:
    first, second = ({"w": nn.Parameter(torch.zeros(2))} for _ in range(2))
    opt = remote(first.items(), "sgd", lr=1.0)
    ones(opt, first)
    other = remote(second.items(), session=opt.session.id)
    ones(other, second)
    in_place(first)
    with pytest.raises(optimd.StaleStep):
        ones(opt, first)
    opt.push_weights()
    ones(opt, first)
    assert first["w"].tolist() == [4.0, 4.0]


def test_there_is_nothing_to_pull_before_the_first_step(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items())
    with pytest.raises(RuntimeError, match="no weights yet"):
        opt.pull_weights()
    free = remote(params.items(), "schedule_free_sgd")
    with pytest.raises(RuntimeError, match="no weights yet"):
        free.averaged("eval")
    assert torch.equal(params["bias"], parameters()["bias"])
