"""The asyncio client is the blocking one, awaited."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from fake_service import FakeService, problem

import optimd

GRADS = {"w": np.full((2, 3), 2.0, np.float32), "b": np.ones(2, np.float32)}


def public(kind: type) -> dict[str, inspect.Signature]:
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {name: inspect.signature(method) for name, method in methods if not name.startswith("_")}


def parameters(signature: inspect.Signature) -> list[tuple[str, str, object]]:
    return [(p.name, str(p.annotation).replace("Async", ""), p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize(
    ("blocking", "awaited"), [(optimd.Client, optimd.AsyncClient), (optimd.Session, optimd.AsyncSession)]
)
def test_both_have_the_same_methods_with_the_same_parameters(blocking: type, awaited: type) -> None:
    ours, theirs = public(blocking), public(awaited)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    for name, signature in ours.items():
        assert parameters(signature) == parameters(theirs[name]), name
        assert str(theirs[name].return_annotation).replace("Async", "") == signature.return_annotation, name


def test_both_clients_take_the_same_arguments() -> None:
    ours, theirs = inspect.signature(optimd.Client), inspect.signature(optimd.AsyncClient)
    assert list(ours.parameters) == list(theirs.parameters)


@pytest.fixture(params=["socket", "mock"])
def async_client(request: pytest.FixtureRequest, service: FakeService):  # type: ignore[no-untyped-def]
    if request.param == "mock":
        yield optimd.AsyncClient("http://optimd.test", transport=service.transport())
    else:
        with service.serving() as url:
            yield optimd.AsyncClient(url)


async def test_a_whole_life_of_a_session(async_client: optimd.AsyncClient, service: FakeService) -> None:
    async with async_client as client:
        session = await client.create_session("sgd", params=service.params, lr=0.5)
        assert [info["id"] async for info in client.sessions(limit=1)] == ["s1"]
        out = {"w": np.empty((2, 3), np.float32)}
        result = await session.step(GRADS, loss=0.7, out=out)
        np.testing.assert_array_equal(out["w"], np.zeros((2, 3)))
        np.testing.assert_array_equal(result.params["b"], [-0.5, -0.5])
        assert (await session.push(GRADS)).step == 2
        assert (await session.wait(1)) is None
        await session.put_params(await session.pull())
        await session.put_state(await session.state())
        assert [step.step async for step in session.history()] == [1, 2]
        assert [event["kind"] async for event in session.events()] == ["created"]
        assert (await session.recorded(2)).step == 2
        await session.delete()
        with pytest.raises(optimd.SessionNotFound):
            await session.refresh()


async def test_a_retry_repeats_the_key_and_the_bytes(async_client: optimd.AsyncClient, service: FakeService) -> None:
    async with async_client as client:
        session = await client.session("s1")
        service.planned = [problem("history-unavailable", 503, retry_after="0"), None]
        await session.push(GRADS)
    first, second = service.seen[-2:]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


async def test_a_large_body_leaves_in_pieces_with_its_length(service: FakeService) -> None:
    large = FakeService({"w": np.zeros(700_000, np.float32)})
    with large.serving() as url:
        async with optimd.AsyncClient(url) as client:
            session = await client.session("s1")
            result = await session.step({"w": np.ones(700_000, np.float32)})
    assert (result.params["w"] == -0.5).all()
    assert int(large.seen[-1].headers["content-length"]) == len(large.seen[-1].body) > 2_800_000


async def test_a_server_that_is_not_there_is_not_connected() -> None:
    async with optimd.AsyncClient("http://127.0.0.1:9", retries=0) as client:
        with pytest.raises(optimd.errors.NotConnected):
            await client.health()
