"""What the pure core says to whoever does the IO: requests to send, replies received, seconds to sleep."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from optimd.errors import MalformedReply

SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"

T = TypeVar("T")


class Sink(Protocol):
    """Receives the body of a tensor reply, so that it can land where it is wanted without a copy."""

    def places(self, length: int) -> Iterator[memoryview]:
        """Yield writable byte buffers, to be filled in turn, for a body of ``length`` bytes.

        A retried request calls it anew. Raises: MalformedReply, for a body that is not what was promised.
        """
        ...


class Pieces(Protocol):
    """A part of a body that is made while it is sent, in memory used again for each piece."""

    @property
    def nbytes(self) -> int: ...

    def __iter__(self) -> Iterator[memoryview]:
        """Yield byte buffers, each valid until the next is asked for. A retried request iterates anew."""
        ...


Body: TypeAlias = Sequence[memoryview | Pieces]


@dataclass(frozen=True)
class Request:
    """One HTTP request, without server address or credentials.

    Attributes:
      target: path and query, percent-encoded.
      body: byte buffers, sent one after the other and never joined by the core, or what makes them.
      sink: takes the body of a 200 reply in safetensors; every other body is given in the Reply.
      wait_s: how long the server was asked to hold the reply back.
      repeatable: whether a second arrival is harmless: it is idempotent, or carries an Idempotency-Key.
      cut_at: the byte at which its body, or if it has none its reply's, may be cut in two that travel side by side.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = ()
    sink: Sink | None = None
    wait_s: float = 0.0
    repeatable: bool = True
    cut_at: int | None = None

    @property
    def body_bytes(self) -> int:
        return sum([piece.nbytes for piece in self.body])

    def buffers(self) -> Iterator[memoryview]:
        """The body as byte buffers, each valid until the next is asked for; those of a small body stay valid."""
        for part in self.body:
            if isinstance(part, memoryview):
                yield part
            else:
                yield from part

    def sink_for(self, status: int, headers: Mapping[str, str]) -> Sink | None:
        """The sink, when the body of a reply with this head belongs there."""
        is_tensors = status == (206 if "range" in self.headers else 200) and headers.get("content-type", "").startswith(
            SAFETENSORS
        )
        return self.sink if is_tensors else None


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply. Header names are in lower case; ``body`` is empty when a sink took it."""

    status: int
    headers: Mapping[str, str]
    body: memoryview


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this long before going on."""

    seconds: float


Operation: TypeAlias = Generator[Request | Sleep, Any, T]
"""Yields what is to be done, is sent the Reply (or None after a Sleep) or thrown an OptimdError, returns its result."""


class Pour:
    """Pours pieces of a body, as they arrive, into a sink's places."""

    def __init__(self, places: Iterator[memoryview]) -> None:
        self._places = places
        self._room = memoryview(b"")

    def write(self, piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        while rest.nbytes:
            if not self._room.nbytes:
                self._room = self._next_place()
            taken = min(rest.nbytes, self._room.nbytes)
            self._room[:taken] = rest[:taken]
            self._room, rest = self._room[taken:], rest[taken:]

    def close(self) -> None:
        """Say that the body has ended. Raises: MalformedReply when the sink still expects more."""
        if self._room.nbytes or next(self._places, None) is not None:
            raise MalformedReply("The reply ended before its last tensor.")

    def _next_place(self) -> memoryview:
        place = next(self._places, None)
        if place is None:
            raise MalformedReply("The reply goes on behind its last tensor.")
        return place


class Intake:
    """Takes the body of a reply in pieces, to the request's sink where it belongs there, else into the Reply."""

    def __init__(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = headers
        self._sink = request.sink_for(status, headers)
        self._pieces: list[bytes] = []
        self._pour: Pour | None = None
        length = headers.get("content-length", "")
        if self._sink is not None and length.isdigit() and "content-encoding" not in headers:
            self._pour = Pour(self._sink.places(int(length)))

    def write(self, piece: bytes) -> None:
        if self._pour is not None:
            self._pour.write(piece)
        else:
            self._pieces.append(piece)

    def reply(self) -> Reply:
        """The reply, once the body has ended."""
        body = b"".join(self._pieces)
        if self._sink is not None and self._pour is None:
            self._pour = Pour(self._sink.places(len(body)))
            self._pour.write(body)
        if self._pour is not None:
            self._pour.close()
            body = b""
        return Reply(self._status, self._headers, memoryview(body))
