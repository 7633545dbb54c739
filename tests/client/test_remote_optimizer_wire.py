"""RemoteOptimizer over a narrow wire: models of every dtype, and parameters that follow the session's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from remote_references import deviation, gradients, parameters, run
from torch import nn

import optimd

Remote = Callable[..., optimd.RemoteOptimizer]
BF16 = {"grads": "bf16", "params": "bf16"}
DIFFERENCE = {**BF16, "difference": True}


def distance(opt: optimd.RemoteOptimizer, params: dict[str, nn.Parameter]) -> float:
    """The largest distance of a parameter to the session's weights."""
    whole = {name: torch.from_numpy(array) for name, array in opt.session.pull(dtype="f32").items()}
    return max(float((p.detach() - whole[name]).abs().max()) for name, p in params.items() if p.numel())


@pytest.mark.parametrize("name", ["bf16", "f16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_ends_near_the_local_optimizer(remote: Remote, optimizer: str, name: str) -> None:
    """The gradients do not depend on the weights here: what is off is their rounding, and that of the last pull."""
    ours, theirs = parameters(), parameters()
    local = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer](theirs.items(), lr=0.01)
    run(remote(ours.items(), optimizer, lr=0.01, wire={"grads": name, "params": name}), ours, 20)
    run(local, theirs, 20)
    assert max(deviation(p.detach(), theirs[key].detach()) for key, p in ours.items()) <= 2**-7


@pytest.mark.parametrize("wire", [BF16, DIFFERENCE, {"params": "f16"}, {"params": "f32"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_every_dtype_receive_what_travels(
    remote: Remote, dtype: torch.dtype, wire: dict[str, Any]
) -> None:
    params = {name: nn.Parameter(p.detach().to(dtype)) for name, p in parameters().items()}
    if dtype is torch.float64:  # a session of float32 with a tensor of doubles
        params["single"] = nn.Parameter(torch.ones(3))
    addresses = {name: p.data_ptr() for name, p in params.items()}
    opt = remote(params.items(), "sgd", lr=1.0, wire=wire)
    for _ in range(3):
        for p in params.values():
            p.grad = torch.full_like(p, 0.25)
        opt.step()
    opt.session.refresh()
    whole = opt.session.pull(dtype="f32")
    for name, p in params.items():
        assert p.dtype is (torch.float32 if name == "single" else dtype)
        assert deviation(p.detach().float(), torch.from_numpy(whole[name])) <= 2**-7
    assert {name: p.data_ptr() for name, p in params.items()} == addresses


def test_a_model_in_bfloat16_has_no_float32_copy_here(remote: Remote) -> None:
    params = {"w": nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))}
    opt = remote(params.items(), "sgd", wire=BF16)
    (target,) = opt._binding._weights.targets().values()
    assert isinstance(target, optimd.RawTensor)
    assert target.data.ctypes.data == params["w"].data_ptr()


def test_rounding_errors_do_not_add_up(remote: Remote) -> None:
    """Over 200 steps of Adam, where plain bfloat16 is off by more than a hundred times as much."""
    plain, exact = parameters(), parameters()
    opts = {
        "plain": (remote(plain.items(), "adam", lr=1e-3, wire={"params": "bf16"}), plain),
        "exact": (remote(exact.items(), "adam", lr=1e-3, wire={**DIFFERENCE, "grads": "f32"}), exact),
    }
    worst = dict.fromkeys(opts, 0.0)
    for name, (opt, params) in opts.items():
        for step, _ in enumerate(gradients(params, 200)):
            opt.step()
            if step % 20 == 19:
                worst[name] = max(worst[name], distance(opt, params))
    assert 0 < worst["exact"] < 1e-2 * 2**-8
    assert worst["plain"] > 100 * worst["exact"]


def test_an_edit_is_kept_and_differences_go_on_from_it(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), "sgd", lr=1e-3, wire=DIFFERENCE)
    run(opt, params, 3)
    with torch.no_grad():
        params["bias"].fill_(5.0)
    run(opt, params, 3)
    assert distance(opt, params) < 1e-4
    assert (params["bias"] > 4.9).all()


def test_weights_that_are_pulled_are_not_rounded(remote: Remote) -> None:
    params = parameters()
    buffers = {"counts": torch.tensor(1001)}  # bfloat16 counts in eights there
    opt = remote(params.items(), "sgd", lr=1e-3, wire=BF16, buffers=buffers)
    run(opt, params, 2)
    opt.pull_weights()
    assert distance(opt, params) == 0
    assert buffers["counts"] == 1001


def test_differences_go_on_after_a_pull_and_beside_buffers(remote: Remote) -> None:
    params = parameters()
    buffers = {"norm.mean": torch.zeros(3), "norm.count": torch.tensor(0)}
    opt = remote(params.items(), "adam", lr=1e-3, wire=DIFFERENCE, buffers=buffers)
    for _ in range(3):
        run(opt, params, 2)
        buffers["norm.count"] += 1
        opt.pull_weights()
    run(opt, params, 2)
    assert 0 < distance(opt, params) < 1e-5  # whole weights would be at no distance


def test_an_attached_optimizer_takes_differences_too(remote: Remote) -> None:
    first, second = parameters(), parameters()
    opt = remote(first.items(), "adam", lr=1e-3, wire=DIFFERENCE)
    run(opt, first, 2)
    attached = remote(second.items(), session=opt.session.id, wire=DIFFERENCE)
    assert distance(attached, second) == 0
    run(attached, second, 3)
    assert 0 < distance(attached, second) < 1e-5
    with pytest.raises(optimd.StaleStep):
        run(opt, first, 1)
    opt.pull_weights()
    run(opt, first, 1)
    assert distance(opt, first) == 0


def test_on_attaching_dtypes_are_changed_where_they_differ(remote: Remote) -> None:
    params = parameters()
    opt = remote(params.items(), wire=BF16)
    run(opt, params, 1)
    other = remote(parameters().items(), session=opt.session.id, wire={"params": "f16"})
    assert other.session.info["wire"] == {"grads": "BF16", "params": "F16", "difference": False}
    events = [event["kind"] for event in other.session.events()]
    remote(parameters().items(), session=opt.session.id, wire={"grads": "BF16", "params": "f16"})
    assert [event["kind"] for event in other.session.events()] == events
    with pytest.raises(optimd.errors.InvalidField, match="fixed when it is created"):
        remote(parameters().items(), session=opt.session.id, wire=DIFFERENCE)
