"""Gradients that are sent ahead of the step that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from fake_service import FakeService, problem, read_safetensors

import optimd
from optimd import errors

GRADS = {"w": np.full((2, 3), 2.0, np.float32), "b": np.ones(2, np.float32)}
W, B = {"w": GRADS["w"]}, {"b": GRADS["b"]}


@pytest.fixture
def session(client: optimd.Client) -> optimd.Session:
    return client.session("s1")


def test_a_part_is_sent_without_a_key_and_a_step_completes_it(session: optimd.Session, service: FakeService) -> None:
    receipt = session.contribute(W, contribution="a/b c")
    assert (receipt.outcome, receipt.step, session.etag) == ("buffered", 0, "0.0")
    result = session.step(B, contribution="a/b c", pull="bf16", loss=0.5)
    part, last = service.seen[-2:]
    assert part.target == "/v1/sessions/s1/steps?contribution=a%2Fb+c"
    assert (part.headers["if-match"], "idempotency-key" in part.headers) == ('"0.0"', False)
    assert last.query == {"pull": "bf16", "contribution": "a/b c", "complete": "true"}
    assert last.headers["idempotency-key"]
    assert read_safetensors(last.body)[1] == {"loss": "0.5"}
    assert (result.receipt.outcome, result.receipt.step) == ("applied", 1)
    np.testing.assert_array_equal(result.params["w"], np.zeros((2, 3)))


def test_a_part_whose_answer_was_lost_is_sent_again(session: optimd.Session, service: FakeService) -> None:
    service.planned = [problem("history-unavailable", 503, retry_after="0")]
    session.contribute(W, contribution="c", if_match=None)
    first, second = service.seen[-2:]
    assert (first.target, first.body, "if-match" in first.headers) == (second.target, second.body, False)


def test_what_is_missing_is_not_asked_for_again(session: optimd.Session, service: FakeService) -> None:
    session.contribute(W, contribution="c")
    before = len(service.seen)
    with pytest.raises(errors.ContributionIncomplete) as caught:
        session.step({}, contribution="c")
    assert (caught.value.contribution, caught.value.missing, caught.value.attempts) == ("c", ["b"], 1)
    assert len(service.seen) == before + 1
    assert session.step(GRADS).receipt.step == 1


PARAMS = {name: np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3) for name in "abc"}


@pytest.fixture
def pair(server_url: str) -> Iterator[list[optimd.Session]]:
    with optimd.Client(server_url) as client:
        sessions = [client.create_session("adamw", params=PARAMS, lr=0.1) for _ in range(2)]
        yield sessions
        for session in sessions:
            session.delete()


def test_the_server_steps_with_parts_as_with_the_whole(pair: list[optimd.Session]) -> None:
    ours, theirs = pair
    for step in range(3):
        grads = {name: np.cos(array + step) for name, array in PARAMS.items()}  # float32, and sent as they are
        for name in "cb":
            assert ours.contribute({name: grads[name]}, contribution=f"step-{step}").outcome == "buffered"
        parted = ours.step({"a": grads["a"]}, contribution=f"step-{step}", loss=1.0)
        whole = theirs.step(grads, loss=1.0)
        assert parted.receipt == replace(whole.receipt, session=ours.id)
        for name, array in whole.params.items():
            np.testing.assert_array_equal(parted.params[name], array)


def test_the_server_says_what_is_missing_and_takes_the_whole(pair: list[optimd.Session]) -> None:
    ours, theirs = pair
    ours.contribute({"a": PARAMS["a"]}, contribution="c")
    ours.push(PARAMS)
    with pytest.raises(errors.ContributionIncomplete) as caught:
        ours.step({"b": PARAMS["b"]}, contribution="c", key="k")
    assert caught.value.missing == ["a", "c"]
    theirs.push(PARAMS)
    np.testing.assert_array_equal(ours.step(PARAMS, key="k").params["a"], theirs.step(PARAMS).params["a"])


def test_gradients_that_are_narrowed_are_narrowed_in_parts_too(server_url: str) -> None:
    with optimd.Client(server_url) as client:
        ours, theirs = (client.create_session("sgd", params=PARAMS, lr=1.0, wire={"grads": "BF16"}) for _ in range(2))
        grads = {name: np.sin(array) for name, array in PARAMS.items()}
        ours.contribute({"a": grads["a"]}, contribution="c")
        ours.contribute({"b": grads["b"]}, contribution="c", send="f32")
        parted = ours.step({"c": grads["c"]}, contribution="c").params
        whole = theirs.step(grads).params
        for name in "ac":
            np.testing.assert_array_equal(parted[name], whole[name])
        np.testing.assert_array_equal(parted["b"], PARAMS["b"] - grads["b"])
        assert (parted["b"] != whole["b"]).any()
        ours.delete()
        theirs.delete()


async def test_the_async_client_sends_parts_too(server_url: str) -> None:
    async with optimd.AsyncClient(server_url) as client:
        session = await client.create_session("sgd", params=PARAMS, lr=1.0)
        receipt = await session.contribute({"a": PARAMS["a"]}, contribution="c")
        assert receipt.outcome == "buffered"
        with pytest.raises(errors.ContributionIncomplete):
            await session.step({"b": PARAMS["b"]}, contribution="c")
        result = await session.step({"b": PARAMS["b"], "c": PARAMS["c"]}, contribution="c")
        np.testing.assert_array_equal(result.params["a"], np.zeros((2, 3)))
        await session.delete()
