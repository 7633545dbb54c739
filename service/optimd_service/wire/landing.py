"""From the payload of a safetensors body to a flat buffer of the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from optimd_service.errors import MalformedJson, ShapeMismatch
from optimd_service.types import Layout, Span
from optimd_service.wire.dtypes import DTYPE_NAMES, WIRE_DTYPES
from optimd_service.wire.json import read_object
from optimd_service.wire.match import check_names
from optimd_service.wire.rows import ROWS, RowEntries, Rows, check_range, check_shapes, pairs_in
from optimd_service.wire.safetensors import INDEX, METADATA, Entry, Header, read_header

_METADATA_START = b'{"' + METADATA.encode() + b'":{'
_NO_ROWS: Mapping[str, RowEntries] = MappingProxyType({})


@dataclass(frozen=True)
class Landing:
    """Where the bytes of one checked body belong.

    Attributes:
      entries: of whole tensors, in payload order.
      payload_bytes: length of the payload.
      direct: the payload is the flat buffer, byte for byte; it may be received straight into it.
      by_rows: tensor name → where its rows and their values lie.
    """

    entries: Sequence[Entry]
    payload_bytes: int
    direct: bool
    by_rows: Mapping[str, RowEntries] = field(default_factory=dict)

    @classmethod
    def plan(cls, header: Header, layout: Layout, by_rows: Mapping[str, RowEntries] = _NO_ROWS) -> Landing:
        """Match a header with a layout.

        Args:
          header: its entries are whole tensors, but for those that are in ``by_rows``.

        Raises: TensorMismatch, ShapeMismatch, InvalidField.
        """
        halves = {half.name for pair in by_rows.values() for half in pair}
        entries = [entry for entry in header.entries if entry.name not in halves] if halves else header.entries
        check_names(layout, {entry.name: None for entry in entries} | dict.fromkeys(by_rows))
        for tensor, pair in by_rows.items():
            check_shapes(layout, tensor, pair.rows.shape, pair.values.shape)
        for entry in entries:
            if entry.shape != layout.shapes[entry.name]:
                raise ShapeMismatch(
                    f"Tensor {entry.name!r} has shape {list(entry.shape)}; "
                    f"the session's is {list(layout.shapes[entry.name])}.",
                    tensor=entry.name,
                    expected=list(layout.shapes[entry.name]),
                    got=list(entry.shape),
                )
        direct = not by_rows and _is_flat_buffer(header, layout)
        return cls(entries, header.payload_bytes, direct, by_rows)

    def scatter_(self, flat: torch.Tensor, spans: Mapping[str, Span], payload: bytearray) -> None:
        """Copy a staged payload into ``flat``, shape [numel], converting each tensor's dtype."""
        for entry in self.entries:
            if entry.stop > entry.start:
                span = spans[entry.name]
                flat[span.start : span.stop].copy_(_elements(payload, entry))

    def rows(self, layout: Layout, payload: bytearray) -> dict[str, Rows]:
        """Views of a staged payload: tensor name → its rows. Raises: InvalidField for one that the tensor lacks."""
        found = {}
        for tensor, (rows, values) in self.by_rows.items():
            found[tensor] = Rows(_elements(payload, rows), _elements(payload, values).view(values.shape))
            check_range(layout, tensor, found[tensor].rows)
        return found


def _is_flat_buffer(header: Header, layout: Layout) -> bool:
    dtype, itemsize = DTYPE_NAMES[layout.dtype], layout.dtype.itemsize
    return all(
        entry.dtype == dtype and (entry.start == layout.spans[entry.name].start * itemsize or entry.start == entry.stop)
        for entry in header.entries
    )


def _elements(payload: bytearray, entry: Entry) -> torch.Tensor:
    """The elements of one tensor, shape [numel]; a view of ``payload`` where its address is aligned."""
    dtype = torch.int64 if entry.dtype == INDEX else WIRE_DTYPES[entry.dtype]
    count = (entry.stop - entry.start) // dtype.itemsize
    if not count:
        return torch.empty(0, dtype=dtype)
    if entry.start % dtype.itemsize == 0:
        return torch.frombuffer(payload, dtype=dtype, count=count, offset=entry.start)
    return torch.frombuffer(payload[entry.start : entry.stop], dtype=dtype)


class HeaderReader:
    """Reads the headers of one session's pushes, remembering the last.

    From one push to the next only ``__metadata__`` changes. When it stands first, the rest of the header is compared
    with the one read before, and thousands of tensors are not parsed again.

    Args:
      layouts: what a body may hold, each the beginning of the next; it is held against the first that is long enough.
      by_rows: some rows of a tensor may come in place of all.
    """

    def __init__(self, *layouts: Layout, by_rows: bool = False) -> None:
        self._layouts = layouts
        self._by_rows = by_rows
        self._known: tuple[bytes, Landing] | None = None

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Check a header against the layout.

        Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, InvalidField, TooLarge.
        """
        known = self._known
        if known and raw.endswith(known[0]) and raw.startswith(_METADATA_START):
            metadata = _metadata_alone(raw[: -len(known[0])])
            if metadata is not None:
                return known[1], metadata
        header = read_header(raw, indices=ROWS if self._by_rows else None)
        most = self._layouts[-1]
        by_rows = pairs_in(header.entries, most) if self._by_rows else _NO_ROWS
        count = len(header.entries) - len(by_rows)  # two entries for one tensor
        fitting = (layout for layout in self._layouts if count <= len(layout.tensors))
        landing = Landing.plan(header, next(fitting, most), by_rows)
        self._remember(raw, landing)
        return landing, dict(header.metadata)

    def _remember(self, raw: bytes, landing: Landing) -> None:
        cut = raw.find(b"},") if raw.startswith(_METADATA_START) else -1
        # The first `},` ends the metadata unless a string inside it holds one; then nothing is remembered.
        if cut > 0 and _metadata_alone(raw[: cut + 1]) is not None:
            self._known = raw[cut + 1 :], landing


def _metadata_alone(raw: bytes) -> dict[str, str] | None:
    """The metadata of a header cut off right behind it, or None where the cut does not fall there."""
    try:
        fields = read_object(raw + b"}")
    except MalformedJson:
        return None
    metadata = fields.get(METADATA)
    if len(fields) != 1 or not isinstance(metadata, dict):
        return None
    return metadata if all(isinstance(text, str) for text in metadata.values()) else None
