"""What a session does around the optimizer's step, asked for through the SDK of a real server."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import optimd
from optimd import errors
from optimd._description import describe
from optimd.models import OptimizerInfo, SessionInfo

PARAMS = {
    "layer.weight": np.ones((2, 3), np.float32),
    "layer.bias": np.zeros(3, np.float32),
    "norm.running_mean": np.full(3, 4.0, np.float32),
    "embedding": np.full(2, 5.0, np.float32),
}
TRAINED = ("layer.weight", "layer.bias")
GRADS = {name: np.ones_like(PARAMS[name]) for name in TRAINED}
ROLES = {"buffers": ["*running*"], "frozen": ["embed*"]}


@pytest.fixture
def client(server_url: str) -> Iterator[optimd.Client]:
    with optimd.Client(server_url) as client:
        yield client
        for info in list(client.sessions()):
            if info["name"] == "features":
                client.session(info["id"]).delete()


def create(client: optimd.Client, optimizer: Any = "sgd", **fields: Any) -> optimd.Session:
    return client.create_session(optimizer, **{"params": PARAMS, "name": "features", **ROLES, **fields})


POLICY: dict[str, Any] = {
    "schedule": {"name": "linear", "start_factor": 0.5, "total_iters": 2},
    "clip": {"max_norm": 1.0},
    "accumulate": {"steps": 2},
    "loss_scale": {"init_scale": 8.0},
    "ema": {"decay": 0.5},
    "swa": {"start": 1},
    "centralize": True,
    "maximize": True,
}


def test_what_is_asked_for_is_what_the_session_says_it_does(client: optimd.Client) -> None:
    info: dict[str, Any] = dict(create(client, lr=0.1, groups="no_decay", **POLICY).info)
    for field, asked in POLICY.items():
        said = info[field]
        assert said == asked if not isinstance(asked, dict) else asked.items() <= said.items()
    assert info["hyperparameters"]["no_decay"]["weight_decay"] == 0
    assert {tensor["name"]: tensor["role"] for tensor in info["tensors"]} == {
        "layer.weight": "trained",
        "layer.bias": "trained",
        "norm.running_mean": "buffer",
        "embedding": "frozen",
    }
    assert {tensor["group"] for tensor in info["tensors"] if tensor["role"] != "trained"} == {None}


def test_gradients_can_be_kept_in_two_bytes(client: optimd.Client, server_url: str) -> None:
    assert client.cost("sgd", tensors={"w": (1000,)}, grad_dtype="BF16")["grads_bytes"] == 2000
    opt = optimd.RemoteOptimizer([torch.nn.Parameter(torch.ones(3))], "sgd", url=server_url, grad_dtype="BF16")
    assert opt.session.info["grad_dtype"] == "BF16"
    opt.close(delete=True)


def test_what_the_server_says_of_a_session_and_an_optimizer_has_a_name_in_the_models(client: optimd.Client) -> None:
    whole, listed, entry = create(client).info, next(client.sessions()), client.optimizer("adam")
    assert whole.keys() == SessionInfo.__annotations__.keys()
    assert whole.keys() - listed.keys() == {"hyperparameters", "tensors"}
    assert entry.keys() == OptimizerInfo.__annotations__.keys()


def test_no_hyperparameter_of_any_optimizer_has_the_name_of_an_argument(client: optimd.Client) -> None:
    taken = {"self", "carry", "if_match", *inspect.signature(describe).parameters} - {"hyperparameters"}
    for info in client.optimizers():
        assert not taken & info["defaults"].keys(), info["name"]


def test_a_hyperparameter_may_stand_in_the_mapping_of_the_optimizer(client: optimd.Client) -> None:
    session = create(client, {"name": "sgd", "lr": 0.5, "momentum": 0.9}, lr=0.25)
    assert (session.info["optimizer"]["lr"], session.info["optimizer"]["momentum"]) == (0.25, 0.9)


def test_every_call_that_takes_a_description_says_so_to_help() -> None:
    wanted = list(inspect.signature(describe).parameters)
    for call in (
        optimd.Client.create_session,
        optimd.Client.cost,
        optimd.AsyncClient.create_session,
        optimd.AsyncClient.cost,
    ):
        assert list(inspect.signature(call).parameters) == ["self", *wanted]


def test_cost_is_what_the_session_then_holds(client: optimd.Client) -> None:
    cost = client.cost("adam", params=PARAMS, **ROLES)
    assert (cost["parameters"], cost["trained_parameters"]) == (14, 9)
    assert cost["state"] == {"exp_avg": 36, "exp_avg_sq": 36}
    assert create(client, "adam").info["bytes"] == cost["bytes"]
    assert client.cost("adam", tensors={"w": (1000, 1000)}, ema={})["state"]["weights.ema"] == 4_000_000
    double = {name: array.astype(np.float64) for name, array in PARAMS.items()}
    assert client.cost("adam", params=double, **ROLES)["bytes"] == 2 * cost["bytes"]
    with pytest.raises(errors.InvalidHyperparameter):
        client.cost("adam", tensors={"w": (2,)}, lr=-1)


def test_buffers_are_stored_with_the_step_and_frozen_tensors_stay(client: optimd.Client) -> None:
    session = create(client, lr=0.5)
    params = session.step(GRADS, buffers={"norm.running_mean": [1.0, 2.0, 3.0]}).params
    np.testing.assert_array_equal(params["norm.running_mean"], [1, 2, 3])
    np.testing.assert_array_equal(params["layer.bias"], [-0.5, -0.5, -0.5])
    np.testing.assert_array_equal(params["embedding"], [5, 5])
    session.push(GRADS)
    np.testing.assert_array_equal(session.pull(["norm.running_mean"])["norm.running_mean"], [1, 2, 3])
    with pytest.raises(ValueError, match=r"'layer.bias' is in grads and in buffers"):
        session.push(GRADS, buffers={"layer.bias": [0, 0, 0]})
    with pytest.raises(errors.TensorMismatch):
        session.push(GRADS, buffers={"embedding": [0, 0]})


def test_pushes_are_buffered_until_they_make_a_step(client: optimd.Client) -> None:
    session = create(client, lr=1.0, accumulate={"steps": 2})
    first = session.step(GRADS)
    assert (first.receipt.outcome, first.receipt.step, session.etag) == ("buffered", 0, "0.0")
    np.testing.assert_array_equal(first.params["layer.bias"], [0, 0, 0])
    second = session.step({name: 3 * grad for name, grad in GRADS.items()})
    assert (second.receipt.outcome, second.receipt.step) == ("applied", 1)
    np.testing.assert_array_equal(second.params["layer.bias"], [-2, -2, -2])


def test_the_receipt_and_the_history_say_what_the_next_loss_is_multiplied_by(client: optimd.Client) -> None:
    session = create(client, lr=1.0, loss_scale={"init_scale": 4.0, "growth_interval": 1})
    receipt = session.push({name: 4 * grad for name, grad in GRADS.items()})
    assert receipt.loss_scale == session.recorded(1).loss_scale == 8.0
    np.testing.assert_array_equal(session.pull()["layer.bias"], [-1, -1, -1])
    overflown = session.push({name: np.full_like(grad, np.inf) for name, grad in GRADS.items()})
    assert (overflown.outcome, overflown.loss_scale) == ("skipped_nonfinite", 4.0)
    assert create(client).push(GRADS).loss_scale is None


def test_averages_are_pulled_in_place_of_the_weights(client: optimd.Client) -> None:
    session = create(client, lr=1.0, ema={"decay": 0.5}, swa={"start": 1})
    with pytest.raises(errors.InvalidField, match="no step yet"):
        session.pull(weights="ema")
    for _ in range(3):
        session.push(GRADS)
    np.testing.assert_array_equal(session.pull(weights="ema")["layer.bias"], [-2.25] * 3)
    np.testing.assert_array_equal(session.pull(["layer.bias"], weights="swa")["layer.bias"], [-2] * 3)
    free = create(client, "schedule_free_sgd", lr=1.0)
    for _ in range(2):
        free.push(GRADS)
    assert not np.array_equal(free.pull(weights="eval")["layer.bias"], free.pull()["layer.bias"])


def test_a_schedule_and_a_clip_are_changed_ended_and_left_alone(client: optimd.Client) -> None:
    session = create(client, lr=1.0, schedule={"name": "constant", "factor": 0.5, "total_iters": 9}, clip={"agc": 1})
    assert session.push(GRADS).lr == 0.5
    session.update(name="features")
    assert session.push(GRADS).lr == 0.5
    session.update(schedule=None, clip={"clip_value": 0.5})
    receipt = session.push(GRADS)
    assert (receipt.lr, receipt.clip_scale, session.info["schedule"]) == (1.0, 0.5, None)
    session.update(schedule={"name": "constant", "factor": 0.25, "total_iters": 1}, clip=None)
    receipts = [session.push(GRADS) for _ in range(2)]
    assert [(receipt.lr, receipt.clip_scale) for receipt in receipts] == [(0.25, 1.0), (1.0, 1.0)]


def test_state_that_is_not_the_sessions_own_is_taken_in_part(client: optimd.Client) -> None:
    adam, other = create(client, "adam"), create(client, "adam")
    adam.push(GRADS)
    state = adam.state()
    tensors = {name: array for name, array in state.tensors.items() if name != "layer.bias.exp_avg"}
    part = replace(state, tensors=tensors | {"layer.bias.mystery": np.zeros(3, np.float32)})
    with pytest.raises(errors.TensorMismatch):
        other.put_state(part)
    assert other.put_state(part, strict=False) == ["layer.bias.mystery"]
    assert other.put_state(state) == []
    np.testing.assert_array_equal(other.state().tensors["layer.bias.exp_avg"], state.tensors["layer.bias.exp_avg"])


def test_what_an_optimizer_remembers_beside_its_buffers_is_state(client: optimd.Client) -> None:
    first, second = create(client, "nadam"), create(client, "nadam")
    first.push(GRADS)
    state = first.state()
    assert 0 < state.numbers["default"]["mu_product"] < 1
    second.put_state(state)
    assert second.state().numbers == state.numbers


def test_another_optimizer_takes_over(client: optimd.Client) -> None:
    session = create(client, "adamw", lr=0.1, groups=[{"name": "b", "match": ["*.bias"], "weight_decay": 0.0}])
    session.push(GRADS)
    moments = session.state().tensors
    with pytest.raises(optimd.StaleStep):
        session.change_optimizer("sgd", if_match="0.0")
    report = session.change_optimizer("rmsprop", lr=0.5, momentum=0.9, carry={"square_avg": "exp_avg_sq"})
    assert (report["optimizer"], report["carried"]) == ("rmsprop", {"square_avg": "exp_avg_sq"})
    assert (report["dropped"], report["dropped_hyperparameters"]) == (["exp_avg"], [])
    assert report["etag"] == session.etag == "1.1"
    assert session.refresh()["optimizer"]["lr"] == 0.5
    np.testing.assert_array_equal(session.state().tensors["layer.bias.square_avg"], moments["layer.bias.exp_avg_sq"])
    assert session.push(GRADS).step == 2


async def test_the_async_session_does_the_same(server_url: str) -> None:
    async with optimd.AsyncClient(server_url) as client:
        fields: dict[str, Any] = {"params": PARAMS, "name": "features", **ROLES, "ema": {"decay": 0.5}, "lr": 1.0}
        cost = await client.cost("sgd", **fields)
        session = await client.create_session("sgd", **fields)
        assert session.info["bytes"] == cost["bytes"]
        buffers = {"norm.running_mean": np.zeros(3)}
        np.testing.assert_array_equal((await session.step(GRADS, buffers=buffers)).params["norm.running_mean"], [0] * 3)
        await session.push(GRADS, buffers=buffers)
        np.testing.assert_array_equal((await session.pull(weights="ema"))["layer.bias"], [-1.5] * 3)
        assert (await session.update(clip={"max_norm": 1.0}))["clip"] is not None
        assert (await session.update(clip=None))["clip"] is None
        report = await session.change_optimizer("adam")
        assert report["carried"] == {}
        await session.push(GRADS)
        assert await session.put_state(await session.state(), strict=False) == []
        await session.delete()
