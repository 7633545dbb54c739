"""RemoteOptimizer(overlap=True): weights that are still on their way when `step` returns, and whoever needs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from overlapping import Network, batch, breaking, drain, held_back, loss_of, same, train, weights
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.module import _global_forward_pre_hooks as hooks

import optimd
from optimd._courier import Courier
from optimd._torch_called import CalledModules, before_each_forward

Remote = Callable[..., optimd.RemoteOptimizer]
LAST = "last.weight"


@pytest.fixture(autouse=True)
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimd._torch_buckets.BUCKET_BYTES", 1024)
    monkeypatch.setattr("optimd._core._LARGE", 0)


@pytest.fixture
def begun(remote: Remote) -> tuple[Network, optimd.RemoteOptimizer]:
    """A model after two steps, all of whose weights are there, and new gradients of it."""
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=True)
    train(model, opt, 2)
    opt.wait()
    opt.zero_grad()
    loss_of(model, 2).backward()
    return model, opt


@pytest.fixture
def expected(remote: Remote) -> dict[str, torch.Tensor]:
    """The parameters after three steps without overlap."""
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=False)
    train(model, opt, 2)
    opt.zero_grad()
    loss_of(model, 2).backward()
    opt.step()
    return {name: param.detach().clone() for name, param in model.named_parameters()}


Begun = tuple[Network, optimd.RemoteOptimizer]
Expected = dict[str, torch.Tensor]


def arrived(model: nn.Module, expected: Expected) -> set[str]:
    return {name for name, param in model.named_parameters() if torch.equal(param, expected[name])}


def in_thread(act: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_step_returns_once_it_is_judged_and_each_module_waits_for_its_own_weights(
    begun: Begun, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opt = begun
    with held_back(monkeypatch, "attention.in_proj_weight") as gate:
        opt.step()
        model.first(batch(3))
        assert {"first.weight", "first.bias"} <= arrived(model, expected)
        waiting = in_thread(lambda: model(batch(3)))
        waiting.join(0.2)
        assert waiting.is_alive()
        assert "last.bias" not in arrived(model, expected)
        gate.set()
        waiting.join(30)
    assert not waiting.is_alive()
    assert arrived(model, expected) == set(expected)
    assert not hooks


def test_a_session_tells_of_each_tensor_as_it_arrives(client: optimd.Client) -> None:
    news: list[str] = []

    class Listener:
        def began(self) -> None:
            news.append("began")

        def arrived(self, name: str) -> None:
            news.append(f"{name} {out[name].max()}")

    session = client.session("s1")
    out = {"b": np.ones(2, np.float32), "w": np.zeros((2, 3), np.float32)}
    grads = {"b": np.full(2, 2, np.float32), "w": np.zeros((2, 3), np.float32)}
    session.step(grads, out=out, arriving=Listener())
    assert news == ["began", "b -1.0", "w 1.0"]


NEED_ALL: dict[str, Callable[[optimd.RemoteOptimizer], Any]] = {
    "wait": lambda opt: opt.wait(),
    "step": lambda opt: opt.step(),
    "state_dict": lambda opt: opt.state_dict(),
    "pull_weights": lambda opt: opt.pull_weights(),
    "push_weights": lambda opt: opt.push_weights(),
    "averaged": lambda opt: opt.averaged("ema").__enter__(),
    "receipt": lambda opt: opt.receipt,
    "loss_scale": lambda opt: opt.loss_scale,
    "session": lambda opt: opt.session,
    "close": lambda opt: opt.close(),
}


@pytest.mark.parametrize("act", NEED_ALL.values(), ids=NEED_ALL)
def test_what_needs_all_weights_waits_for_them(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, act: Callable[[optimd.RemoteOptimizer], Any]
) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, ema={"decay": 0.5}, overlap=True)
    train(model, opt, 2)
    loss_of(model, 2).backward()
    with held_back(monkeypatch, "attention.in_proj_weight") as gate:
        opt.step()
        waiting = in_thread(lambda: act(opt))
        waiting.join(0.1)
        assert waiting.is_alive()
        gate.set()
        waiting.join(30)
    assert not waiting.is_alive()


def test_with_push_the_weights_are_there_when_step_returns(remote: Remote, expected: Expected) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap="push")
    train(model, opt, 3)
    assert arrived(model, expected) == set(expected)
    assert not hooks


def test_a_module_waits_for_what_it_uses_of_modules_that_it_does_not_call() -> None:
    model, called = Network(), CalledModules()
    handle = before_each_forward(called.add)
    model(batch(0))
    handle.remove()
    assert {id(p) for p in called.parameters_of(model.attention)} == {id(p) for p in model.attention.parameters()}
    assert {id(p) for p in called.parameters_of(model)} == {id(model.scale)}
    stranger = nn.Linear(2, 2)
    assert called.unclaimed([*model.parameters(), stranger.bias]) == [stranger.bias]


@pytest.mark.parametrize("how", ["model", "in place", "function"])
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_models_train_as_others(remote: Remote, how: str) -> None:
    ended = []
    for overlap in (False, True):
        torch._dynamo.reset()
        model = Network()
        net: Any = model
        if how == "in place":
            model.compile(backend="eager")
        else:
            net = torch.compile(model if how == "model" else lambda x, m=model: m(x), backend="eager")
        opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=overlap)
        for i in range(4):
            opt.zero_grad()
            net(batch(i)).square().mean().backward()
            drain(opt)
            opt.step()
        opt.wait()
        ended.append(weights(model))
    assert same(*ended)


def test_a_change_while_weights_are_on_their_way_is_an_error(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = begun
    with held_back(monkeypatch, LAST):
        opt.step()
        with torch.no_grad():
            model.last.weight.clamp_(-0.1, 0.1)
    with pytest.raises(RuntimeError, match=r"'last.weight' was changed while.*opt.wait\(\)"):
        model(batch(3))
    opt.pull_weights()
    assert train(model, opt, 1)[0] == 4


def test_a_parameter_used_outside_its_module_is_an_error_and_after_wait_none(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opt = begun
    with held_back(monkeypatch, LAST):
        opt.step()
        opt.zero_grad()
        model.first(batch(3))
        loss = linear(torch.ones(2, 16), model.last.weight).sum()
        with pytest.raises(RuntimeError, match=r"'last.weight' was used before.*opt.wait\(\).*overlap='push'"):
            loss.backward()
    opt.wait()
    linear(torch.ones(2, 16), model.last.weight).sum().backward()


def test_a_backward_pass_through_weights_that_are_being_replaced_fails(begun: Begun) -> None:
    model, opt = begun
    loss = loss_of(model, 3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_reply_that_breaks_off_is_asked_for_again(
    begun: Begun, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opt = begun
    with breaking(monkeypatch, LAST, times=1, before=lambda: None):
        opt.step()
        opt.wait()
    assert opt.receipt is not None
    assert opt.receipt.step == 3
    assert arrived(model, expected) == set(expected)


def test_weights_that_only_changed_gradients_could_ask_for_are_fetched_on_demand(
    begun: Begun, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opt = begun
    zeroed = threading.Event()
    with breaking(monkeypatch, LAST, times=1, before=lambda: zeroed.wait(30)):
        opt.step()
        opt.zero_grad(set_to_none=False)
        zeroed.set()
        with pytest.raises(optimd.ConnectionFailed, match="have been changed meanwhile"):
            opt.wait()
    opt.pull_weights()
    assert arrived(model, expected) == set(expected)
    assert train(model, opt, 1)[0] == 4


FIND_OUT: dict[str, Callable[[nn.Module, optimd.RemoteOptimizer], Any]] = {
    "forward": lambda model, _: model(batch(3)),
    "wait": lambda _, opt: opt.wait(),
    "step": lambda _, opt: opt.step(),
    "close": lambda _, opt: opt.close(),
}


@pytest.fixture
def impatient(server_url: str) -> Iterator[optimd.Client]:
    with optimd.Client(server_url, retries=0) as client:
        yield client


@pytest.mark.parametrize("find_out", FIND_OUT.values(), ids=FIND_OUT)
def test_weights_that_never_come_are_an_error_once(
    remote: Remote,
    impatient: optimd.Client,
    monkeypatch: pytest.MonkeyPatch,
    find_out: Callable[[nn.Module, optimd.RemoteOptimizer], Any],
) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=True, client=impatient)
    train(model, opt, 2)
    loss_of(model, 2).backward()
    with breaking(monkeypatch, LAST, times=9, before=lambda: None):
        opt.step()
        with pytest.raises(optimd.ConnectionFailed, match="cut by the test"):
            find_out(model, opt)
    model(batch(3))
    assert not hooks
    with pytest.raises(optimd.StaleStep):
        opt.step()
    opt.pull_weights()
    assert train(model, opt, 1)[0] == 4


def test_an_error_inside_the_context_is_not_hidden_by_one_of_the_weights(
    remote: Remote, impatient: optimd.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Network()
    opt = remote(model.named_parameters(), "sgd", lr=0.1, overlap=True, client=impatient)
    train(model, opt, 1)
    loss_of(model, 2).backward()
    with breaking(monkeypatch, LAST, times=9, before=lambda: None):  # noqa: SIM117 - only the inner one is the promise
        with pytest.raises(RuntimeError, match="inside"), opt:  # noqa: PT012 - the error is the program's own
            opt.step()
            raise RuntimeError("inside")


def in_child(act: Callable[[], bool]) -> bool:
    """What ``act`` says in a forked process."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if act() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refuses(opt: optimd.RemoteOptimizer) -> bool:
    try:
        opt.wait()
    except RuntimeError as error:
        return "forked" in str(error)
    return False


def test_a_forked_process_does_not_wait_for_what_only_its_parent_receives(
    begun: Begun, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, opt = begun
    with held_back(monkeypatch, LAST):
        opt.step()
        assert in_child(lambda: refuses(opt))
    opt.wait()
    assert arrived(model, expected) == set(expected)


def test_a_forked_process_has_a_courier_of_its_own() -> None:
    courier = Courier()
    assert courier.send(os.getpid).result(30) == os.getpid()
    assert in_child(lambda: courier.send(os.getpid).result(30) == os.getpid())
    courier.close()


def test_errands_are_run_in_turn_until_the_courier_is_closed() -> None:
    courier, seen = Courier(), list[int]()
    threads = {courier.send(threading.current_thread).result(30)}
    for i in range(9):
        courier.send(lambda i=i: seen.append(i))
    failed = courier.send(lambda: 1 / 0)
    assert isinstance(failed.exception(30), ZeroDivisionError)
    assert seen == list(range(9))
    threads.add(courier.send(threading.current_thread).result(30))
    courier.close()
    assert len(threads) == 1
    (thread,) = threads
    thread.join(30)
    assert not thread.is_alive()
    assert courier.send(threading.current_thread).result(30) is not thread
