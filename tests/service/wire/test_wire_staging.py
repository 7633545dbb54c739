"""Bytes between the host and a device: whole, in order, and never before they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import xxhash

from optimd_service.types import Span
from optimd_service.wire import staging
from optimd_service.wire.arrival import Arrival
from optimd_service.wire.digest import BodyDigest
from optimd_service.wire.flat import flat_bytes
from optimd_service.wire.payload import Payload
from optimd_service.wire.runs import Run
from optimd_service.wire.staging import StreamCopies
from posing_device import Stream

STAGED = 8
# None, less than a buffer, a buffer to the byte, one more, as many as there are, and rounds of them.
LENGTHS = [0, 1, 7, 8, 9, 24, 25, 100]
WIRE = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True, params=["late", "early"])
def small_buffers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """And copies of what poses as a device: as late as they may be done, or at once."""
    monkeypatch.setattr(staging, "STAGED", STAGED)
    if request.param == "early":
        monkeypatch.setattr(Stream, "begin", at_once)


def at_once(_: Stream, to: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
    with torch._C.DisableTorchFunctionSubclass():
        to.copy_(source)
    return lambda: None


def numbers(length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(1.0, length + 1).to(dtype)


def receive(arrival: Arrival, sent: bytes) -> None:
    at = 0
    for place in arrival.places():
        place[:] = sent[at : at + len(place)]
        at += len(place)
    assert at == len(sent)


@pytest.mark.parametrize("wire", WIRE, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_what_arrives_is_there_once_the_last_place_is_filled(device: Any, length: int, wire: torch.dtype) -> None:
    flat = device.put(torch.zeros(length))
    sent = bytes(flat_bytes(numbers(length, wire)))
    receive(Arrival(flat, [Run(0, length, wire)] if length else [], None, None), sent)
    assert torch.equal(flat.to("cpu"), numbers(length, wire).float())


def test_runs_of_several_dtypes_arrive_each_where_it_belongs(device: Any) -> None:
    flat, digest, seen = device.put(torch.zeros(60)), BodyDigest(b"header"), list[Span]()
    runs = [Run(30, 60, torch.float32), Run(0, 30, torch.float16)]
    values = numbers(60)
    sent = bytes(flat_bytes(values[30:])) + bytes(flat_bytes(values[:30].half()))
    receive(Arrival(flat, runs, digest, seen.append), sent)
    assert torch.equal(flat.to("cpu"), values)
    assert digest.digest() == xxhash.xxh3_128_digest(b"header" + xxhash.xxh3_128_digest(sent))
    assert sum(stop - start for start, stop in seen) == 60


def test_what_is_left_of_a_body_that_breaks_off_does_not_come_after_the_next(device: Any) -> None:
    flat = device.put(torch.zeros(100))
    run = Run(0, 100, torch.float32)
    places = Arrival(flat, [run], None, None).places()
    for _ in range(3):
        next(places)[:] = bytes(flat_bytes(torch.ones(STAGED)))
    places.close()
    receive(Arrival(flat, [run], None, None), bytes(flat_bytes(numbers(100))))
    assert torch.equal(flat.to("cpu"), numbers(100))


@pytest.mark.parametrize("wire", WIRE, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_sent_is_what_lies_there(device: Any, length: int, wire: torch.dtype) -> None:
    payload = Payload([device.put(numbers(length)), device.put(numbers(3))], wire)
    sent = b"".join(bytes(piece) for piece in payload.pieces())
    assert len(sent) == payload.nbytes
    assert sent == bytes(flat_bytes(torch.cat([numbers(length, wire), numbers(3, wire)])))


def test_a_piece_is_read_when_it_is_ready_and_one_ahead_of_the_sending(device: Any) -> None:
    stretch = device.put(torch.zeros(3 * STAGED))
    asked = list[int]()

    def ready(stop: int) -> None:
        asked.append(stop)
        stretch[stop - STAGED : stop] = device.put(torch.full((STAGED,), float(stop)))

    pieces = Payload([stretch], torch.float32, ready).pieces()
    first = bytes(next(pieces))
    assert first == bytes(flat_bytes(torch.full((STAGED,), float(STAGED))))
    assert asked == [STAGED, 2 * STAGED]
    assert b"".join(map(bytes, pieces)) == bytes(flat_bytes(torch.tensor([16.0] * STAGED + [24.0] * STAGED)))


def test_a_piece_stays_as_it_is_until_the_next_is_asked_for(device: Any) -> None:
    pieces = Payload([device.put(numbers(10 * STAGED))]).pieces()
    for at in range(0, 10 * STAGED, STAGED):
        piece = next(pieces)
        if device.tolerance == 1e-5:
            torch.cuda.synchronize()
        assert bytes(piece) == bytes(flat_bytes(numbers(10 * STAGED)[at : at + STAGED]))


def test_memory_that_only_a_device_sees_is_never_taken_for_the_hosts(device: Any) -> None:
    with pytest.raises(TypeError):
        flat_bytes(device.put(torch.ones(3)))


class FakeStream:
    """Writes down what is asked of it."""

    def __init__(self, name: str, log: list[tuple[str, ...]]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: FakeEvent) -> None:
        assert event.recorded
        self.log.append((self.name, "waits for", "the copy"))

    def __enter__(self) -> None:
        self.log.append((self.name, "is given"))

    def __exit__(self, *_: object) -> None:
        self.log.append((self.name, "has all"))


class FakeEvent:
    recorded = False

    def __init__(self, *, blocking: bool) -> None:
        assert blocking

    def record(self, stream: FakeStream) -> None:
        self.recorded = True
        stream.log.append((stream.name, "copies"))

    def synchronize(self) -> None:
        assert self.recorded


@pytest.mark.parametrize("outward", [False, True])
def test_copies_go_over_a_stream_of_their_own_in_order_with_the_devices_work(
    monkeypatch: pytest.MonkeyPatch, outward: bool
) -> None:
    log = list[tuple[str, ...]]()
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: FakeStream("default", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(staging, "_stream", lambda _, outward: FakeStream("out" if outward else "in", log))
    to, source = torch.zeros(3), torch.ones(3)
    copies = StreamCopies(torch.device("cuda:0"), outward=outward)
    copies.begin(to, source)()
    assert torch.equal(to, source)
    own = "out" if outward else "in"
    order = [(own, "waits for", "default"), (own, "is given"), (own, "copies"), (own, "has all")]
    assert log == order + ([] if outward else [("default", "waits for", "the copy")])
