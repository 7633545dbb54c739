"""The SDK against a real server process: what both sides make of the same page of reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

import optimd
from optimd import errors
from optimd.cli import app

PARAMS = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layer.bias": np.zeros(3, np.float32),
    "scale": np.array(1.0, np.float32),
    "nothing": np.zeros((0, 2), np.float32),
}
GRADS = {
    "layer.weight": np.ones((4, 3), np.float32).T,
    "layer.bias": np.full(3, 2.0),
    "scale": np.array(1.0, np.float16),
    "nothing": np.zeros((0, 2), np.float32),
}


@pytest.fixture
def url(server_url: str) -> str:
    return server_url


@pytest.fixture
def client(url: str) -> Iterator[optimd.Client]:
    with optimd.Client(url) as client:
        yield client


@pytest.fixture
def session(client: optimd.Client) -> Iterator[optimd.Session]:
    groups = [{"name": "no_decay", "match": ["*.bias"], "weight_decay": 0}]
    session = client.create_session("adamw", params=PARAMS, groups=groups, name="t", lr=0.1, weight_decay=0.5)
    yield session
    session.delete()


def test_a_session_starts_from_the_weights_it_was_given(session: optimd.Session) -> None:
    params = session.pull()
    assert params.keys() == PARAMS.keys()
    for name, array in PARAMS.items():
        np.testing.assert_array_equal(params[name], array, strict=True)
    assert session.info["hyperparameters"]["no_decay"]["weight_decay"] == 0


def test_steps_go_down_and_are_recorded(session: optimd.Session) -> None:
    for i in range(3):
        result = session.step(GRADS, loss=1.0 - i, num_examples=8, worker="w0")
    assert result.receipt.step == 3
    assert (result.params["layer.bias"] < -0.2).all()
    steps = list(session.history())
    assert [(step.step, step.loss, step.num_examples, step.worker) for step in steps] == [
        (1, 1.0, 8, "w0"),
        (2, 0.0, 8, "w0"),
        (3, -1.0, 8, "w0"),
    ]
    assert session.recorded(2) == steps[1]


def test_out_receives_the_weights_in_place(session: optimd.Session) -> None:
    out = {name: np.empty_like(array) for name, array in PARAMS.items()}
    session.step(GRADS, out=out)
    for name, array in session.pull().items():
        np.testing.assert_array_equal(out[name], array)


@pytest.mark.parametrize("pull", ["f32", "bf16", "f16", "f64"])
def test_weights_come_down_in_every_wire_dtype(session: optimd.Session, pull: optimd.models.WireDtype) -> None:
    coarse = session.step(GRADS, pull=pull).params
    for name, array in session.pull().items():
        np.testing.assert_allclose(coarse[name], array, rtol=2**-7)


def test_a_push_brings_the_receipt_alone(session: optimd.Session) -> None:
    receipt = session.push(GRADS)
    assert (receipt.step, receipt.loss, receipt.duplicate) == (1, None, False)
    assert session.etag == "1.0"


def test_one_key_is_one_step(session: optimd.Session) -> None:
    first = session.push(GRADS, key="k")
    again = session.push(GRADS, key="k", if_match="0.0")
    assert again.duplicate
    assert again.step == first.step == 1
    with pytest.raises(errors.KeyReused):
        session.push(PARAMS, key="k")


def test_a_stale_step_names_the_servers_version(session: optimd.Session) -> None:
    session.push(GRADS)
    with pytest.raises(optimd.StaleStep) as caught:
        session.push(GRADS, if_match="0")
    assert (caught.value.step, caught.value.etag) == (1, "1.0")


def test_refusals_arrive_as_their_own_class(session: optimd.Session, client: optimd.Client) -> None:
    with pytest.raises(errors.TensorMismatch) as mismatch:
        session.push({name: GRADS[name] for name in ("scale", "nothing", "layer.bias")})
    assert mismatch.value.missing == ["layer.weight"]
    with pytest.raises(errors.ShapeMismatch) as shape:
        session.push(GRADS | {"layer.bias": np.zeros(4)})
    assert (shape.value.tensor, shape.value.expected, shape.value.got) == ("layer.bias", [3], [4])
    with pytest.raises(errors.NonfiniteGradients) as nonfinite:
        session.push(GRADS | {"scale": np.array(np.nan)})
    assert nonfinite.value.tensors == ["scale"]
    with pytest.raises(errors.InvalidHyperparameter) as invalid:
        client.create_session("sgd", tensors={"w": (2,)}, lr=-1)
    assert invalid.value.field is not None
    assert "lr" in invalid.value.field
    with pytest.raises(errors.OptimizerNotFound):
        client.optimizer("no-such-optimizer")
    assert session.etag == "0.0"


def test_state_taken_out_and_brought_in_continues_the_same(session: optimd.Session, client: optimd.Client) -> None:
    session.push(GRADS)
    settings = {"lr": 0.1, "weight_decay": 0.5, "groups": session.info["groups"]}
    twin = client.create_session("adamw", params=session.pull(), **settings)
    twin.put_state(session.state())
    ours, theirs = session.step(GRADS).params, twin.step(GRADS).params
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array)
    twin.delete()


def test_weights_that_are_put_are_the_weights(session: optimd.Session) -> None:
    session.put_params(GRADS)
    assert session.etag == "0.1"
    np.testing.assert_array_equal(session.pull(["layer.bias"])["layer.bias"], [2.0, 2.0, 2.0])


def test_changes_are_events(session: optimd.Session) -> None:
    session.update(optimizer={"lr": 0.01}, name="renamed")
    assert session.info["name"] == "renamed"
    assert session.push(GRADS).lr == 0.01
    assert [event["kind"] for event in session.events()] == ["created", "changed"]


def test_wait_answers_when_another_has_stepped(session: optimd.Session, client: optimd.Client) -> None:
    assert session.wait(1) is None
    client.session(session.id).push(GRADS)
    assert session.wait(30) is not None


def test_the_command_shows_what_the_server_holds(url: str, session: optimd.Session) -> None:
    session.push(GRADS, loss=0.5)
    for arguments in (
        ["sessions"],
        ["show", session.id],
        ["history", session.id],
        ["optimizers"],
        ["optimizers", "adamw"],
    ):
        result = CliRunner().invoke(app, ["--url", url, *arguments])
        assert (result.exit_code, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) > 3


async def test_the_async_client_trains_too(url: str) -> None:
    async with optimd.AsyncClient(url) as client:
        session = await client.create_session("sgd", params=PARAMS, lr=0.5)
        result = await session.step(GRADS)
        np.testing.assert_array_equal(result.params["layer.bias"], [-1.0, -1.0, -1.0])
        assert [step.step async for step in session.history()] == [1]
        await session.delete()
        with pytest.raises(optimd.SessionNotFound):
            await session.refresh()
