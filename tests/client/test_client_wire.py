"""Gradients and weights over a narrow wire, against a real server: what travels, and what both sides come to hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import optimd
from optimd._exchange import Reply, Request
from optimd._safetensors import RawTensor
from optimd.errors import ConnectionFailed, InvalidField, MalformedReply

GENERATOR = np.random.default_rng(0)
# The second is received in several pieces.
SHAPES = {"bias": (3,), "layer.weight": (700, 1000), "nothing": (0, 2), "scale": ()}
PARAMS = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
GRADS = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
DIFFERENCE = {"grads": "bf16", "params": "bf16", "difference": True}
Spied = list[tuple[str, dict[str, str], int]]


def bits(array: Any) -> Any:
    """bfloat16 of an array without NaN, as the numbers of float32 that it stands for."""
    words = np.asarray(array, np.float32).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.fixture
def client(server_url: str) -> Iterator[optimd.Client]:
    with optimd.Client(server_url) as client:
        yield client


@pytest.fixture
def create(client: optimd.Client) -> Iterator[Callable[..., optimd.Session]]:
    made: list[optimd.Session] = []

    def one(optimizer: str = "sgd", **description: Any) -> optimd.Session:
        made.append(client.create_session(optimizer, **({"params": PARAMS, "lr": 1.0} | description)))
        return made[-1]

    yield one
    for session in made:
        session.delete()


@pytest.fixture
def spied(client: optimd.Client, monkeypatch: pytest.MonkeyPatch) -> Spied:
    """Of each request: its query, the dtypes in its body, and how long its reply was."""
    seen: Spied = []
    exchange = client._transport.exchange

    def spy(request: Request) -> Reply:
        reply = exchange(request)
        sent = b"".join(map(bytes, request.buffers())) if request.target.partition("?")[0].endswith("/steps") else b""
        header = json.loads(sent[8 : 8 + int.from_bytes(sent[:8], "little")] or "{}")
        dtypes = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        seen.append((request.target.partition("?")[2], dtypes, int(reply.headers.get("content-length", 0))))
        return reply

    monkeypatch.setattr(client._transport, "exchange", spy)
    return seen


def empty() -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.empty(shape, np.float32) for name, shape in SHAPES.items()}


def distance(session: optimd.Session, held: dict[str, Any]) -> float:
    whole = session.pull(dtype="f32")
    return max(float(np.abs(whole[name] - array).max()) for name, array in held.items() if array.size)


@pytest.mark.parametrize("how", ["call", "session"])
def test_gradients_are_rounded_on_their_way(create: Any, spied: Spied, how: str) -> None:
    session = create(wire={"grads": "bf16"} if how == "session" else None)
    result = session.step(GRADS, **({"send": "bf16"} if how == "call" else {}))
    assert set(spied[-1][1].values()) == {"BF16"}
    for name, array in PARAMS.items():
        np.testing.assert_array_equal(result.params[name], array - bits(GRADS[name]))


def test_a_call_may_send_in_another_dtype_than_the_session_says(create: Any, spied: Spied) -> None:
    session = create(wire={"grads": "bf16"})
    for name in ("f32", "f16", "bf16"):
        session.push(GRADS, send=name)
        assert set(spied[-1][1].values()) == {name.upper()}
    assert session.update(wire={"grads": "f16"})["wire"]["grads"] == "F16"
    session.push(GRADS)
    assert set(spied[-1][1].values()) == {"F16"}


def test_what_is_narrow_raw_or_a_buffer_is_sent_as_it_is(create: Any, spied: Spied) -> None:
    names = {name: array for name, array in PARAMS.items() if array.size < 100}
    session = create(params=names, buffers=["nothing", "scale"], wire={"grads": "bf16"})
    grads = {"bias": GRADS["bias"].astype(np.float16)}
    session.push(grads, buffers={"nothing": names["nothing"], "scale": np.float32(1 / 3)})
    assert spied[-1][1] == {"bias": "F16", "nothing": "F32", "scale": "F32"}
    raw = {"bias": RawTensor("F32", (3,), GRADS["bias"])}
    session.push(raw, buffers={"nothing": names["nothing"], "scale": np.float32(1 / 3)})
    assert spied[-1][1]["bias"] == "F32"
    assert session.pull(["scale"])["scale"] == np.float32(1 / 3)


def test_some_rows_are_rounded_too(create: Any, spied: Spied) -> None:
    session = create(params={"table": np.zeros((4, 2), np.float32)}, wire={"grads": "bf16"})
    session.push({"table": optimd.RowGradient([1], np.full((1, 2), 1 / 3, np.float32))})
    assert spied[-1][1] == {"table#rows": "I64", "table#values": "BF16"}
    np.testing.assert_array_equal(session.pull()["table"][1], -bits([1 / 3, 1 / 3]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_weights_come_narrow_into_arrays_of_every_dtype(create: Any, dtype: Any) -> None:
    session = create(wire={"params": "bf16"})
    out = {name: np.empty(shape, dtype) for name, shape in SHAPES.items()}
    session.step(GRADS, out=out)
    for name, array in PARAMS.items():
        np.testing.assert_array_equal(out[name], bits(array - GRADS[name]).astype(dtype))
    np.testing.assert_array_equal(session.pull()["bias"], bits(PARAMS["bias"] - GRADS["bias"]), strict=True)


def test_an_unknown_dtype_is_refused(create: Any) -> None:
    with pytest.raises(InvalidField, match="wire"):
        create(wire={"grads": "int8"})
    with pytest.raises(ValueError, match="f8"):
        create().step(GRADS, send="f8")


def test_differences_follow_the_weights_closely(create: Any, spied: Spied) -> None:
    session, out = create("adam", lr=1e-3, wire=DIFFERENCE), empty()
    for _ in range(10):
        result = session.step(GRADS, out=out)
    assert result.params["bias"] is out["bias"]
    assert distance(session, out) <= 2e-3 * 2**-8
    lengths = [length for _, _, length in spied[1:11]]
    assert lengths[0] == pytest.approx(4 * 700_000, rel=0.01)
    assert lengths[1:] == [pytest.approx(2 * 700_000, rel=0.01)] * 9


def test_differences_are_taken_to_the_arrays_that_the_last_reply_filled(create: Any, spied: Spied) -> None:
    session, first, second = create("adam", lr=1e-3, wire=DIFFERENCE), empty(), empty()
    for out in (first, first, second, second, first, {**first, "bias": first["bias"].copy()}):
        session.step(GRADS, out=out)
        assert distance(session, out) < 1e-4
    shown = [query.partition("holds=")[2][:4] for query, _, _ in spied if "holds=" in query]
    assert [word == "none" for word in shown] == [True, False, True, False, True, True]


@pytest.mark.parametrize("between", ["pull into them", "push", "pull elsewhere", "put"])
def test_what_else_is_done_in_between_spoils_nothing(create: Any, between: str) -> None:
    session, out = create("adam", lr=1e-3, wire=DIFFERENCE), empty()
    for _ in range(3):
        session.step(GRADS, out=out)
        if between == "pull into them":
            session.pull(dtype="f16", out=out)
        elif between == "push":
            session.push(GRADS)
        elif between == "put":
            out["bias"][:] = 7.0
            session.put_params(out)
        else:
            session.pull()
    session.step(GRADS, out=out)
    assert distance(session, out) < 1e-4


@pytest.mark.parametrize("out", [None, "some", "half", "strided"])
def test_where_no_difference_can_be_taken_weights_come_whole(create: Any, out: str | None) -> None:
    session = create("adam", lr=1e-3, wire=DIFFERENCE)
    into: dict[str, Any] | None = empty()
    assert into is not None
    if out is None:
        into = None
    elif out == "some":
        del into["bias"]
    elif out == "half":
        into["bias"] = np.empty(3, np.float16)
    else:
        into["layer.weight"] = np.empty((1000, 700), np.float32).T
    for _ in range(2):
        result = session.step(GRADS, out=into)
    whole = session.pull()
    for name, array in result.params.items():
        np.testing.assert_array_equal(array, whole[name].astype(array.dtype))


class HalfRead:
    """A sink that gives up after some places, as a connection that breaks does."""

    def __init__(self, sink: Any, places: int) -> None:
        self._sink, self._places = sink, places

    def places(self, length: int) -> Iterator[memoryview]:
        for number, place in enumerate(self._sink.places(length)):
            if number == self._places:
                raise ConnectionFailed("cut")
            yield place


@pytest.mark.parametrize("places", [0, 2, 3, 5])
def test_a_reply_that_broke_off_is_asked_for_whole(
    client: optimd.Client, create: Any, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    session, out = create("adam", lr=1e-3, wire=DIFFERENCE), empty()
    for _ in range(2):
        session.step(GRADS, out=out)
    exchange, cut = client._transport.exchange, [places]

    def breaking(request: Request) -> Reply:
        if not cut:
            return exchange(request)
        sink = HalfRead(request.sink, cut.pop())
        return exchange(Request(request.method, request.target, request.headers, request.body, sink))

    monkeypatch.setattr(client._transport, "exchange", breaking)
    receipt = session.step(GRADS, out=out).receipt
    assert (receipt.step, receipt.duplicate, cut) == (3, True, [])
    assert distance(session, out) == 0
    session.step(GRADS, out=out)
    assert 0 < distance(session, out) < 1e-5


def test_the_difference_to_something_else_is_no_reply(
    client: optimd.Client, create: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, out = create("adam", lr=1e-3, wire=DIFFERENCE), empty()
    session.step(GRADS, out=out)
    exchange = client._transport.exchange
    token = session._core._held._token

    def wrong(request: Request) -> Reply:
        target = request.target.replace("holds=none", f"holds={token}")
        return exchange(Request(request.method, target, request.headers, request.body, request.sink))

    monkeypatch.setattr(client._transport, "exchange", wrong)
    with pytest.raises(MalformedReply, match="not here"):
        session.step(GRADS, out=empty())


def test_the_client_for_asyncio_takes_differences_too(server_url: str) -> None:
    async def train() -> float:
        async with optimd.AsyncClient(server_url) as client:
            session, out = await client.create_session("adam", params=PARAMS, lr=1e-3, wire=DIFFERENCE), empty()
            for _ in range(3):
                await session.step(GRADS, out=out)
            whole = await session.pull()
            await session.delete()
            return max(float(np.abs(whole[name] - array).max()) for name, array in out.items() if array.size)

    assert 0 < asyncio.run(train()) <= 2e-3 * 2**-8
