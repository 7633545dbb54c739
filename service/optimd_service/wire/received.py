"""A body of tensors that has arrived whole: its fields, its digest, and the way into a flat buffer.

Receiving happens on the event loop and only moves bytes; everything here that computes is called from a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import xxhash

from optimd_service.errors import InvalidField, MalformedJson
from optimd_service.types import Layout
from optimd_service.wire.arrival import Arrival, Watch
from optimd_service.wire.body import Body
from optimd_service.wire.digest import BodyDigest
from optimd_service.wire.elsewhere import Elsewhere
from optimd_service.wire.json import MAX_JSON_BYTES, land_json_, read_json, read_object
from optimd_service.wire.json_rows import rows_from_json
from optimd_service.wire.landing import Landing
from optimd_service.wire.match import check_names
from optimd_service.wire.rows import Rows
from optimd_service.wire.safetensors import PREFIX_BYTES, header_bytes

# What the safetensors libraries write of themselves; it says nothing to us.
LIBRARY_METADATA = "format"

# Read in some 100 µs; a longer one would hold up everybody else.
SHORT_HEADER = 16 * 1024


class ReadsHeaders(Protocol):
    """What knows which tensors a body must hold."""

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Check a header and plan its landing: the plan, and ``__metadata__``."""


class Received(Protocol):
    """A body, whichever kind it came as.

    Attributes:
      quick: little is left to do but to move bytes.
    """

    @property
    def quick(self) -> bool: ...

    def digest(self) -> bytes:
        """16 bytes that tell this body from any other."""

    def fields(self) -> dict[str, Any]:
        """Everything beside the tensors, decoded."""

    def holds_buffers(self, layout: Layout) -> bool:
        """Whether a push holds new values of the session's buffers beside its gradients."""

    def rows(self, layout: Layout) -> Mapping[str, Rows]:
        """Tensor name → its rows, for each tensor of which a push holds rows alone.

        Raises: InvalidField, ShapeMismatch.
        """

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:
        """Write the tensors into ``flat``, shape [numel]; all or nothing.

        Args:
          by_rows: those that ``rows`` has given; they are its caller's to write.
        """


@dataclass(frozen=True)
class SafetensorsBody:
    """A checked header, and the payload.

    Attributes:
      staged: the payload, unless it was received into the flat buffer.
      landed: what tells that payload from any other, if it was asked for.
    """

    header: bytes
    metadata: dict[str, str]
    landing: Landing
    staged: bytearray | None
    landed: BodyDigest | None = None

    @property
    def names(self) -> Collection[str]:
        """The tensors that came whole."""
        return self.landing.names

    @property
    def quick(self) -> bool:
        return len(self.header) <= SHORT_HEADER

    def digest(self) -> bytes:
        if self.landed is not None:
            return self.landed.digest()
        digest = xxhash.xxh3_128(self.header)
        if self.staged is not None:
            digest.update(self.staged)
        return digest.digest()

    def fields(self) -> dict[str, Any]:
        return {
            name: text if name == "worker" else _from_text(name, text)
            for name, text in self.metadata.items()
            if name != LIBRARY_METADATA
        }

    def holds_buffers(self, layout: Layout) -> bool:
        return len(self.landing.entries) + len(self.landing.by_rows) > len(layout.trained.tensors)

    def rows(self, layout: Layout) -> Mapping[str, Rows]:
        return {} if self.staged is None else self.landing.rows(layout, self.staged)

    def land_(
        self,
        flat: torch.Tensor,
        layout: Layout,
        by_rows: Collection[str] = (),  # noqa: ARG002  the header has told them apart
    ) -> None:
        if self.staged is not None:
            self.landing.scatter_(flat, layout.spans, self.staged)


def _from_text(name: str, text: str) -> Any:
    try:
        return read_json(text)
    except MalformedJson as error:
        raise InvalidField(f"In `__metadata__`, {name} must be JSON text: {error.detail}", field=name) from None


@dataclass(frozen=True)
class JsonBody:
    """The raw text, read when asked, in a thread."""

    text: bytearray
    tensors: str  # the field that holds them: grads or params
    buffers: str | None = None  # the field that holds new values of buffers, where there may be one

    @property
    def quick(self) -> bool:
        return False

    def digest(self) -> bytes:
        return xxhash.xxh3_128_digest(self.text)

    @cached_property
    def _object(self) -> dict[str, Any]:
        return read_object(self.text)

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in self._object.items() if name not in {self.tensors, self.buffers}}

    def holds_buffers(self, layout: Layout) -> bool:  # noqa: ARG002  a body in JSON says so itself
        return self.buffers is not None and self._object.get(self.buffers) is not None

    def rows(self, layout: Layout) -> Mapping[str, Rows]:
        return rows_from_json(layout, self._object.get(self.tensors))

    def land_(self, flat: torch.Tensor, layout: Layout, by_rows: Collection[str] = ()) -> None:
        tensors = self._object.get(self.tensors)
        if self.buffers is not None and self.holds_buffers(layout):
            tensors = _together(tensors, self._object[self.buffers], layout)
        land_json_(flat, layout, tensors, what=self.tensors, by_rows=by_rows)


def _together(grads: Any, buffers: Any, layout: Layout) -> Any:
    if not isinstance(grads, dict) or not isinstance(buffers, dict):
        raise InvalidField("`grads` and `buffers` must map tensor names to nested lists.", field="buffers")
    check_names(layout.trained, grads)
    check_names(layout.of_buffers, buffers)
    return grads | buffers


async def receive_header(body: Body) -> bytes:
    """Receive the header of a safetensors body. Raises: MalformedSafetensors, TooLarge."""
    prefix = bytes(await body.exactly(PREFIX_BYTES, rule="length", what="the header's length"))
    return bytes(await body.exactly(header_bytes(prefix), rule="truncated", what="the header"))


async def read_header(headers: ReadsHeaders, raw: bytes, run: Elsewhere) -> tuple[Landing, dict[str, str]]:
    """What ``headers`` read in one, in a thread if it is long. Raises: whatever they do."""
    return headers.read(raw) if len(raw) <= SHORT_HEADER else await run(headers.read, raw)


async def receive_tensors(
    body: Body,
    header: bytes,
    read: tuple[Landing, dict[str, str]],
    flat: torch.Tensor | None,
    *,
    run: Elsewhere,
    digested: bool = False,
    watch: Watch | None = None,
) -> SafetensorsBody:
    """Receive the payload behind a checked header, to the body's end.

    Args:
      read: what the header says.
      flat: at least as long as the layout; whatever can be received into it is. Without it all is staged.
      run: runs a function in a thread.
      digested: the body's digest will be asked for.
      watch: told what has come into ``flat``, in the thread in which it came.

    Raises: MalformedSafetensors.
    """
    landing, metadata = read
    if flat is None or landing.staged:
        payload = await body.exactly(landing.payload_bytes, rule="truncated", what="the payload")
        await body.end()
        return SafetensorsBody(header, metadata, landing, payload)
    digest = BodyDigest(header) if digested else None
    places = Arrival(flat, landing.runs, digest, watch).places()
    await body.pour(places, landing.payload_bytes, run=run, what="the payload", waits=not flat.is_cpu)
    return SafetensorsBody(header, metadata, landing, None, digest)


async def receive_safetensors(
    body: Body,
    headers: ReadsHeaders,
    flat: torch.Tensor | Callable[[Landing], torch.Tensor] | None,
    *,
    run: Elsewhere,
    digested: bool = False,
    watch: Watch | None = None,
) -> SafetensorsBody:
    """Receive a safetensors body, checking the header before the payload is read.

    Args:
      headers: knows the tensors that these must be; long headers are read in a thread.
      flat, run, digested, watch: as for ``receive_tensors``; ``flat`` may depend on what the header says.

    Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, TooLarge.
    """
    raw = await receive_header(body)
    read = await read_header(headers, raw, run)
    place = flat if flat is None or isinstance(flat, torch.Tensor) else flat(read[0])
    return await receive_tensors(body, raw, read, place, run=run, digested=digested, watch=watch)


async def receive_json(body: Body, *, tensors: str, buffers: str | None = None) -> JsonBody:
    """Receive a JSON body of at most 16 MiB. Raises: TooLarge."""
    return JsonBody(await body.everything(MAX_JSON_BYTES, advice="Send safetensors instead."), tensors, buffers)
