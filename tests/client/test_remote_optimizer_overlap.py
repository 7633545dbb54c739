"""RemoteOptimizer(overlap=…): gradients that leave during the backward pass never change what a step does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from overlapping import MODES, Network, drain, figures, loss_of, same, train, weights
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import optimd
from optimd import errors
from optimd._torch_buckets import buckets

Remote = Callable[..., optimd.RemoteOptimizer]
Pushes = list[tuple[str, list[str]]]

overlapping = pytest.mark.parametrize("overlap", ["push", True])


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimd._torch_buckets.BUCKET_BYTES", 1024)


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> Pushes:
    """What is pushed, in turn: "part", "rest" or "whole", and the names of the gradients in it."""
    seen: Pushes = []
    contribute, step = optimd.Session.contribute, optimd.Session.step

    def seen_contribute(self: optimd.Session, grads: Any, **said: Any) -> Any:
        seen.append(("part", list(grads)))
        return contribute(self, grads, **said)

    def seen_step(self: optimd.Session, grads: Any, **said: Any) -> Any:
        seen.append(("whole" if said.get("contribution") is None else "rest", list(grads)))
        return step(self, grads, **said)

    monkeypatch.setattr(optimd.Session, "contribute", seen_contribute)
    monkeypatch.setattr(optimd.Session, "step", seen_step)
    return seen


def kinds(pushes: Pushes) -> set[str]:
    return {kind for kind, _ in pushes}


@pytest.mark.parametrize(
    ("sizes", "full", "wanted"),
    [
        ({}, 10, []),
        ({"a": 4, "b": 4, "c": 4}, 8, [("b", "c"), ("a",)]),
        ({"a": 4, "b": 4, "c": 4}, 12, [("a", "b", "c")]),
        ({"a": 4, "huge": 99, "b": 4}, 8, [("huge", "b"), ("a",)]),
        ({"a": 0, "b": 8, "c": 0}, 8, [("b", "c"), ("a",)]),
        ({"0.weight": 9, "0.bias": 1, "1.weight": 9, "1.bias": 1}, 8, [("1.weight", "1.bias"), ("0.weight", "0.bias")]),
    ],
)
def test_buckets_are_full_runs_of_the_layout_from_its_end(
    sizes: dict[str, int], full: int, wanted: list[tuple[str, ...]]
) -> None:
    assert buckets(sizes, full) == wanted


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.9}),
        ("adamw", {"lr": 1e-2, "clip": {"max_norm": 0.5}}),
        ("lion", {"lr": 1e-3, "schedule": {"name": "cosine", "total_steps": 6}}),
        ("adafactor", {"lr": 1e-2}),
        ("adamw", {"lr": 1e-2, "accumulate": {"steps": 2}}),
        ("adamw", {"lr": 1e-2, "loss_scale": {"init_scale": 1.0}}),
        ("adamw", {"lr": 1e-2, "grad_dtype": "BF16"}),
    ],
    ids=str,
)
def test_training_with_overlap_is_training_without_to_the_last_bit(
    remote: Remote, pushes: Pushes, optimizer: str, settings: dict[str, Any]
) -> None:
    ended = []
    for overlap in MODES:
        model = Network()
        opt = remote(
            model.named_parameters(),
            optimizer,
            buffers=None if "grad_dtype" in settings else model.named_buffers,
            groups="no_decay",
            overlap=overlap,
            **settings,
        )
        pushes.clear()
        last = train(model, opt, 6)
        history = [
            (row.step, row.lr, row.grad_norm, row.clip_scale, row.update_norm, row.param_norm)
            for row in opt.session.history()
        ]
        ended.append((weights(model), (last, history, opt.session.etag)))
        assert kinds(pushes) == ({"whole", "part", "rest"} if overlap else {"whole"})
    assert all(same(got, ended[0][0]) and told == ended[0][1] for got, told in ended)
    assert not same(ended[0][0], weights(Network()))


@overlapping
def test_the_first_step_and_one_after_an_edit_go_whole(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    assert kinds(pushes) == {"whole"}
    opt.wait()
    train(model, opt, 1)
    assert pushes[-1][0] == "rest"
    opt.wait()
    with torch.no_grad():
        model.scale.fill_(3.0)
    train(model, opt, 1)
    assert pushes[-1][0] == "whole"
    assert opt.session.etag == "3.2"


@overlapping
def test_what_fits_one_bucket_is_pushed_as_ever(
    remote: Remote, pushes: Pushes, monkeypatch: pytest.MonkeyPatch, overlap: Any
) -> None:
    monkeypatch.setattr("optimd._torch_buckets.BUCKET_BYTES", 2**20)
    model = Network()
    train(model, remote(model.named_parameters(), "sgd", overlap=overlap), 3)
    assert kinds(pushes) == {"whole"}


def again(model: nn.Module) -> None:
    loss_of(model, 99).backward()


def anew(model: nn.Module) -> None:
    model.zero_grad()
    loss_of(model, 99).backward()


def in_place_and_anew(model: nn.Module) -> None:
    model.zero_grad(set_to_none=False)
    loss_of(model, 99).backward()


def clip(model: nn.Module) -> None:
    clip_grad_norm_(model.parameters(), 0.01)


def clamp(model: nn.Module) -> None:
    clip_grad_value_(model.parameters(), 0.001)


def unscale(model: nn.Module) -> None:
    """As GradScaler does, which writes past autograd's version counter."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    scaler.unscale_(torch.optim.SGD(model.parameters()))


def through_data(model: nn.Module) -> None:
    for param in model.parameters():
        param.grad.data.mul_(0.5)


def replaced(model: nn.Module) -> None:
    model.last.weight.grad = torch.ones_like(model.last.weight)


def only_one(model: nn.Module) -> None:
    model.last.weight.grad[0, 3] += 1


@pytest.mark.parametrize(
    "change", [again, anew, in_place_and_anew, clip, clamp, unscale, through_data, replaced, only_one]
)
def test_a_gradient_that_changes_after_it_was_sent_counts_as_it_is_at_the_step(
    remote: Remote, change: Callable[[nn.Module], None]
) -> None:
    ended = []
    for overlap in MODES:
        model = Network()
        opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=overlap)
        train(model, opt, 1)
        for i in range(2):
            opt.zero_grad()
            loss_of(model, i).backward()
            drain(opt)
            change(model)
            drain(opt)
            opt.step()
        opt.wait()
        ended.append(weights(model))
    assert same(ended[1], ended[0])
    assert same(ended[2], ended[0])


@overlapping
def test_a_gradient_that_is_nearly_all_zero_is_sent_ahead_and_seen_to_change(
    remote: Remote, pushes: Pushes, overlap: Any
) -> None:
    ended = []
    for mode in (False, overlap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8), nn.Linear(8, 400))
        opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=mode)
        for _ in range(2):
            opt.zero_grad()
            model(torch.ones(4, 8))[:, 7].square().mean().backward()
            drain(opt)
            unscale(model)
            opt.step()
        opt.wait()
        ended.append(weights(model))
    assert any("2.weight" in names for kind, names in pushes if kind == "part")
    assert same(*ended)


@overlapping
def test_buckets_that_did_not_change_are_not_sent_again(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    opt.zero_grad()
    loss_of(model, 1).backward()
    drain(opt)
    parts = [names for _, names in pushes[1:]]
    only_one(model)
    opt.step()
    kind, rest = pushes[-1]
    assert kind == "rest"
    assert "last.weight" in rest
    kept = [names for names in parts if "last.weight" not in names]
    assert kept
    assert not {name for names in kept for name in names} & set(rest)


@overlapping
def test_what_is_sent_in_vain_is_soon_sent_no_more(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    for i in range(3):
        loss_of(model, i).backward()
        drain(opt)
        clip(model)
        if i < 2:
            opt.step()
    with pytest.warns(UserWarning, match="clip="):
        opt.step()
    pushes.clear()
    train(model, opt, 2)
    assert kinds(pushes) == {"whole"}


@overlapping
def test_gradients_that_are_accumulated_are_sent_once(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model, alone = Network(), Network()
    opt, local = (
        remote(model.named_parameters(), "sgd", lr=0.1, overlap=overlap),
        remote(alone.named_parameters(), "sgd", lr=0.1, overlap=False),
    )
    train(model, opt, 1)
    train(alone, local, 1)
    for net in (model, alone):
        net.zero_grad()
    pushes.clear()
    with opt.no_sync(), local.no_sync():
        loss_of(model, 1).backward()
        loss_of(alone, 1).backward()
    drain(opt)
    assert not pushes
    for each, net in ((opt, model), (local, alone)):
        loss_of(net, 2).backward()
        drain(each)
        each.step()
    opt.wait()
    assert [kind for kind, _ in pushes][:2] == ["part", "part"]
    assert pushes[-2][0] == "rest"
    assert same(weights(model), weights(alone))


def forgotten(opt: optimd.RemoteOptimizer) -> None:
    with optimd.Client() as client:
        client.session(opt._binding.session.id).contribute({"scale": torch.ones(()).numpy()}, contribution="another")


@overlapping
def test_parts_that_the_server_has_forgotten_are_pushed_whole(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model, alone = Network(), Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    loss_of(model, 1).backward()
    drain(opt)
    forgotten(opt)
    opt.step()
    assert [kind for kind, _ in pushes[-2:]] == ["rest", "whole"]
    local = remote(alone.named_parameters(), "sgd", overlap=False)
    train(alone, local, 1)
    loss_of(alone, 1).backward()
    local.step()
    opt.wait()
    assert same(weights(model), weights(alone))


@overlapping
def test_a_part_that_fails_is_no_failure_of_the_step(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, pushes: Pushes, overlap: Any
) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)

    def fail(*_: Any, **__: Any) -> None:
        raise optimd.ConnectionFailed("cut by the test")

    with monkeypatch.context() as patched:
        patched.setattr(optimd.Session, "contribute", fail)
        assert train(model, opt, 1)[:2] == (2, "applied")
    assert pushes[-1][0] == "whole"
    train(model, opt, 1)
    assert pushes[-1][0] == "rest"


@overlapping
def test_another_writer_is_noticed_by_the_step(remote: Remote, overlap: Any) -> None:
    model, other = Network(), Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=overlap)
    train(model, opt, 1)
    session = opt.session.id
    train(other, remote(other.named_parameters(), session=session, overlap=False), 1)
    with pytest.raises(optimd.StaleStep):
        train(model, opt, 1)
    opt.pull_weights()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert train(model, opt, 1)[0] == 3


@overlapping
def test_gradients_that_are_not_finite_are_refused_by_the_step(remote: Remote, overlap: Any) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    opt.wait()
    before = weights(model)
    (loss_of(model, 1) * torch.inf).backward()
    drain(opt)
    with pytest.raises(errors.NonfiniteGradients):
        opt.step()
    model.zero_grad()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert train(model, opt, 1)[:2] == (2, "applied")


class WithTable(nn.Module):
    """A table whose gradient may be sparse, and a layer that not every pass uses."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8, sparse=sparse)
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 40)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.used(self.table(rows)))


@overlapping
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_and_missing_gradients_travel_with_the_step(remote: Remote, sparse: bool, overlap: Any) -> None:
    ended = []
    for mode in (False, overlap):
        model = WithTable(sparse=sparse)
        opt = remote(model.named_parameters(), "sgd", lr=0.1, missing_grad="zero", overlap=mode)
        for i in range(4):
            opt.zero_grad()
            model(torch.tensor([i, 7, i])).square().mean().backward()
            drain(opt)
            opt.step()
        opt.wait()
        ended.append(weights(model))
    assert same(*ended)


@overlapping
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_other_dtypes_overlap_too(
    remote: Remote, pushes: Pushes, dtype: torch.dtype, overlap: Any
) -> None:
    ended = []
    for mode in (False, overlap):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8), nn.Linear(8, 4)).to(dtype)
        opt = remote(model.named_parameters(), "adamw", lr=0.01, overlap=mode)
        for i in range(5):
            opt.zero_grad()
            model(torch.full((4, 8), 0.1 * i + 1, dtype=dtype)).square().sum().backward()
            drain(opt)
            opt.step()
        opt.wait()
        ended.append(weights(model))
    assert kinds(pushes) == {"whole", "part", "rest"}
    assert same(*ended)


@overlapping
def test_a_closure_and_a_scheduler_work_as_without(remote: Remote, overlap: Any) -> None:
    ended = []
    for mode in (False, overlap):
        model = Network()
        opt = remote(model.named_parameters(), "adamw", lr=0.01, overlap=mode)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        told = []
        for i in range(4):

            def closure(i: int = i, opt: Any = opt, model: Any = model) -> torch.Tensor:
                opt.zero_grad()
                loss = loss_of(model, i)
                loss.backward()
                return loss

            told.append((opt.step(closure).item(), *figures(opt)))
            scheduler.step()
        opt.wait()
        ended.append((weights(model), told))
    assert ended[0][1] == ended[1][1]
    assert same(ended[0][0], ended[1][0])


@overlapping
def test_state_goes_to_another_optimizer_and_back(remote: Remote, overlap: Any) -> None:
    model, other = Network(), Network()
    opt = remote(model.named_parameters(), "adamw", overlap=overlap)
    train(model, opt, 3)
    saved = opt.state_dict()
    other.load_state_dict(model.state_dict())
    local = remote(other.named_parameters(), "adamw", overlap=overlap)
    local.load_state_dict(saved)
    assert train(model, opt, 3, start=3)[3:] == train(other, local, 3, start=3)[3:]
    opt.wait()
    local.wait()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_what_overlap_can_be_is_said(remote: Remote) -> None:
    with pytest.raises(ValueError, match="overlap is False, True or 'push', not 'pull'"):
        remote([nn.Parameter(torch.ones(2))], overlap="pull")


@overlapping
def test_closing_lets_go_of_the_parameters(remote: Remote, pushes: Pushes, overlap: Any) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", overlap=overlap)
    train(model, opt, 1)
    opt.close()
    pushes.clear()
    loss_of(model, 1).backward()
    drain(opt)
    assert not pushes
    assert not torch.nn.modules.module._global_forward_pre_hooks
