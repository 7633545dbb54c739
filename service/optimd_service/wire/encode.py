"""Flat buffers on their way out: safetensors without a copy where the dtype is the session's, and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from optimd_service.errors import InvalidField, NotAcceptable
from optimd_service.types import Layout
from optimd_service.wire.cut import Cut
from optimd_service.wire.dtypes import DTYPE_NAMES
from optimd_service.wire.json import MAX_JSON_PARAMETERS, tensors_to_json, write_json
from optimd_service.wire.payload import NOTHING, Payload, Trailed
from optimd_service.wire.safetensors import assemble_header, write_entries, write_metadata

TRAIL_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body ready to be sent: the first bytes, and the tensors behind them."""

    head: bytes
    payload: Payload | Trailed | Cut = NOTHING

    def __len__(self) -> int:
        return len(self.head) + self.payload.nbytes

    def pieces(self) -> Iterator[memoryview]:
        """All of it; the bytes of a piece may change when the next is asked for."""
        yield memoryview(self.head)
        yield from self.payload.pieces()

    def cut(self, start: int, stop: int) -> Encoded:
        """Its bytes from ``start`` up to ``stop``, of a body that is a head and plain tensors."""
        behind, payload = len(self.head), cast("Payload", self.payload)
        return Encoded(self.head[start:stop], Cut(payload, max(start - behind, 0), max(stop - behind, 0)))


class Encoder:
    """Encodes one layout's flat buffers, remembering the part of the header that never changes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._numbers = _numbers(layout.shapes.values())  # counted here, in a thread: a push in JSON asks on the loop
        self._entries: dict[torch.dtype, bytes] = {}

    def nothing(self, metadata: Mapping[str, str]) -> Encoded:
        """A safetensors file of metadata alone."""
        return Encoded(assemble_header(write_metadata(metadata), b""))

    def whole(self, metadata: Mapping[str, str], payload: Payload) -> Encoded:
        """Encode all tensors, which are the ``payload``."""
        return Encoded(assemble_header(write_metadata(metadata), self._all_entries(payload.dtype)), payload)

    def safetensors(
        self,
        flat: torch.Tensor,
        metadata: Mapping[str, str],
        *,
        dtype: torch.dtype | None = None,
        names: Sequence[str] | None = None,
    ) -> Encoded:
        """Encode ``flat``, shape [numel].

        Args:
          dtype: of the wire; the layout's when None.
          names: the tensors wanted, in layout order whatever the order here; all when None.

        Raises: InvalidField for an unknown name.
        """
        dtype = dtype or self._layout.dtype
        if names is None:
            return self.whole(metadata, Payload([flat], dtype))
        wanted = self._wanted(names)
        head = assemble_header(write_metadata(metadata), self._entries_of(wanted, dtype))
        return Encoded(head, Payload(self._stretches(flat, wanted), dtype))

    def trailed(self, metadata: Mapping[str, str], payload: Payload, name: str, text: Callable[[], bytes]) -> Encoded:
        """Encode all tensors, and a text behind them as one tensor more, of bytes.

        Args:
          payload: of all tensors.
          name: of the text.   text: at most ``TRAIL_BYTES`` long; asked for when the tensors have been sent.
        """
        at = payload.nbytes
        trail = {"dtype": "U8", "shape": [TRAIL_BYTES], "data_offsets": [at, at + TRAIL_BYTES]}
        entries = self._all_entries(payload.dtype) + b"," + write_json(name) + b":" + write_json(trail)
        return Encoded(assemble_header(write_metadata(metadata), entries), Trailed(payload, text, TRAIL_BYTES))

    def json(
        self, flat: torch.Tensor, *, names: Sequence[str] | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Encode ``flat`` as nested lists, rounded to ``dtype``.

        Raises: NotAcceptable above a million parameters, InvalidField for an unknown name.
        """
        wanted = None if names is None else self._wanted(names)
        self.check_json(wanted)
        views = self._layout.views(flat)
        return tensors_to_json(
            {name: views[name].to(dtype or self._layout.dtype) for name in (views if wanted is None else wanted)}
        )

    def check_json(self, names: Sequence[str] | None = None) -> None:
        """Refuse what JSON does not carry, before anything is done for it. Raises: NotAcceptable."""
        shapes = self._layout.shapes
        numbers = self._numbers if names is None else _numbers(shapes[name] for name in names)
        if numbers > MAX_JSON_PARAMETERS:
            raise NotAcceptable(
                f"JSON carries at most {MAX_JSON_PARAMETERS} parameters; send `Accept: application/vnd.safetensors`, "
                "or name fewer tensors."
            )

    def _wanted(self, names: Sequence[str]) -> list[str]:
        for name in names:
            if name not in self._layout.spans:
                raise InvalidField(f"The session has no tensor {name[:80]!r}.", field="names")
        chosen = set(names)
        return [name for name in self._layout.spans if name in chosen]

    def _stretches(self, flat: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """The elements of tensors, in layout order, in as few stretches as they make."""
        ends: list[tuple[int, int]] = []
        for start, stop in (self._layout.spans[name] for name in names):
            begins_at = ends.pop()[0] if ends and ends[-1][1] == start else start
            ends.append((begins_at, stop))
        return [flat[start:stop] for start, stop in ends]

    def _all_entries(self, dtype: torch.dtype) -> bytes:
        if dtype not in self._entries:
            self._entries[dtype] = self._entries_of(list(self._layout.spans), dtype)
        return self._entries[dtype]

    def _entries_of(self, names: Sequence[str], dtype: torch.dtype) -> bytes:
        return write_entries({name: (DTYPE_NAMES[dtype], self._layout.shapes[name]) for name in names})


def _numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """How many numbers or lists tensors of these shapes are: an empty one of shape [n, 0] is n lists."""
    return sum(math.prod(size or 1 for size in shape) for shape in shapes)


def encode_json(value: Any) -> Encoded:
    """A JSON body."""
    return Encoded(write_json(value))


def encode_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Encoded:
    """Encode separate tensors of one dtype as safetensors, joined into one piece of memory."""
    entries = write_entries({name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()})
    payload = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]) if tensors else torch.empty(0)
    return Encoded(assemble_header(write_metadata(metadata), entries), Payload([payload], payload.dtype))
