"""A session through time, by the SDK and by the command, on the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import optimd
from optimd.cli import app
from optimd.errors import InvalidField, StaleStep, StepNotRetained

GRAD = {"w": np.ones(3, np.float32)}


@pytest.fixture
def session(server_url: str) -> Iterator[optimd.Session]:
    with optimd.Client(server_url) as client:
        session = client.create_session("adam", params={"w": np.arange(3, dtype=np.float32)}, lr=0.1)
        yield session
        session.delete()


def trained(session: optimd.Session, steps: int) -> list[np.ndarray]:
    first = session.pull()["w"]
    return [first, *(session.step({"w": GRAD["w"] * (1 + number)}).params["w"] for number in range(steps))]


def test_a_handle_steps_on_from_where_it_rolled_back_to(session: optimd.Session) -> None:
    stood = trained(session, 3)
    session.update(optimizer={"lr": 5.0})
    report = session.rollback(step=1)
    assert (report["etag"], report["left"], session.etag) == ("1.1", "3.0", "1.1")
    np.testing.assert_array_equal(session.pull()["w"], stood[1])
    assert session.info["optimizer"]["lr"] == 0.1, "the description is that of then"
    assert session.step(GRAD).receipt.step == 2
    assert [step.step for step in session.history()] == [1, 2]


def test_checkpoints_are_made_listed_returned_to_and_removed(session: optimd.Session) -> None:
    stood = trained(session, 2)
    assert session.checkpoint("best")["labels"] == ["best"]
    trained(session, 1)
    assert session.checkpoints()["retained"] == [[0, 3]]
    session.rollback(label="best")
    np.testing.assert_array_equal(session.pull()["w"], stood[2])
    session.remove_checkpoint("best")
    with pytest.raises(StepNotRetained):
        session.rollback(label="best")


def test_refusals_say_what_there_is(session: optimd.Session) -> None:
    trained(session, 2)
    with pytest.raises(StepNotRetained) as refused:
        session.rollback(step=9)
    assert refused.value.retained == [[0, 2]]
    with pytest.raises(StaleStep):
        session.rollback(step=1, if_match="1.0")
    with pytest.raises(InvalidField):
        session.rollback()


def test_a_fork_is_a_session_of_its_own(session: optimd.Session) -> None:
    stood = trained(session, 2)
    branch = session.fork(step=1, name="b", optimizer={"name": "sgd", "lr": 0.5}, clip={"max_norm": 1.0})
    assert (branch.etag, branch.info["name"], branch.info["origin"]) == (
        "1.0",
        "b",
        {"session": session.id, "etag": "1.0"},
    )
    np.testing.assert_array_equal(branch.pull()["w"], stood[1])
    assert branch.step(GRAD).receipt.step == 2
    assert session.etag == "2.0"
    branch.delete()


def test_what_if_compares_settings_and_does_nothing(session: optimd.Session) -> None:
    trained(session, 2)
    report = session.what_if(GRAD, [{"optimizer": {"lr": 0.2}}, {"name": "plain", "optimizer": {"name": "sgd"}}])
    faster, plain = report["candidates"]
    assert report["own"]["update_norm"] == pytest.approx(session.step(GRAD).receipt.update_norm)
    assert faster["update_norm"] == pytest.approx(2 * (report["own"]["update_norm"] or 0), rel=1e-4)
    assert plain["cosine_to_descent"] == pytest.approx(1)
    assert plain["name"] == "plain"


def test_asyncio_has_the_same_calls(server_url: str) -> None:
    async def travel() -> list[str | None]:
        async with optimd.AsyncClient(server_url) as client:
            session = await client.create_session("sgd", params={"w": np.ones(3, np.float32)}, lr=0.1)
            await session.push(GRAD)
            await session.checkpoint("one")
            await session.push(GRAD)
            await session.rollback(label="one")
            branch = await session.fork(step=0)
            report = await session.what_if(GRAD, [{"optimizer": {"lr": 0.2}}])
            kept = await session.checkpoints()
            await session.remove_checkpoint("one")
            found = [session.etag, branch.etag, report["etag"], kept["checkpoints"][-1]["etag"]]
            for one in (session, branch):
                await one.delete()
            return found

    assert asyncio.run(travel()) == ["1.1", "0.0", "1.1", "1.0"]


def test_a_remote_optimizer_goes_on_from_where_its_session_rolled_back_to(
    remote: Callable[..., optimd.RemoteOptimizer],
) -> None:
    param = torch.nn.Parameter(torch.ones(4))
    opt = remote([param], "adam", lr=0.1)

    def step() -> torch.Tensor:
        param.grad = param.detach() * 2
        opt.step()
        opt.wait()
        return param.detach().clone()

    first, _, third = step(), step(), step()
    opt.session.rollback(step=1)
    param.grad = torch.ones(4)
    with pytest.raises(StaleStep):
        opt.step()
    opt.pull_weights()
    torch.testing.assert_close(param.detach(), first, rtol=0, atol=0)
    step()
    torch.testing.assert_close(step(), third, rtol=0, atol=0)


def test_the_command_travels(session: optimd.Session, server_url: str) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["--url", server_url, *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    trained(session, 2)
    assert "Kept step 2" in run("checkpoint", session.id, "--label", "best")
    shown = run("checkpoints", session.id)
    assert "Steps 0 to 2 can be returned to" in shown
    assert "best" in shown
    assert "stands at 1.1; it stood at 2.0" in run("rollback", session.id, "--step", "1")
    assert "stands at 2.2" in run("rollback", session.id, "--label", "best")
    branch = run("fork", session.id, "--step", "1", "--name", "b", "--optimizer", "sgd", "--lr", "0.5").split()[0]
    with optimd.Client(server_url) as client:
        assert client.session(branch).info["optimizer"]["name"] == "sgd"
        client.session(branch).delete()
    refused = CliRunner().invoke(app, ["--url", server_url, "rollback", session.id])
    assert refused.exit_code == 2
