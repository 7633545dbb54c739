"""From the payload of a safetensors body to a flat buffer of the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch

from optimd_service.errors import ShapeMismatch
from optimd_service.types import Layout, Span
from optimd_service.wire.dtypes import DTYPE_NAMES, WIRE_DTYPES
from optimd_service.wire.known import KnownHeaders
from optimd_service.wire.match import NameCheck, check_names, check_some
from optimd_service.wire.rows import ROWS, RowEntries, Rows, check_range, check_shapes, pairs_in, require_whole
from optimd_service.wire.runs import Run, runs_of
from optimd_service.wire.safetensors import INDEX, Entry, Header, read_header

_NO_ROWS: Mapping[str, RowEntries] = MappingProxyType({})


@dataclass(frozen=True)
class Landing:
    """Where the bytes of one checked body belong.

    Attributes:
      entries: of whole tensors, in payload order.
      payload_bytes: length of the payload.
      direct: the payload is the flat buffer, byte for byte; it may be received straight into it.
      by_rows: tensor name → where its rows and their values lie.
      runs: the payload as stretches of the flat buffer; empty where it must be looked at before it is written there.
    """

    entries: Sequence[Entry]
    payload_bytes: int
    direct: bool
    by_rows: Mapping[str, RowEntries] = field(default_factory=dict)
    runs: Sequence[Run] = ()

    @property
    def names(self) -> list[str]:
        """The tensors that come whole, in payload order."""
        return [entry.name for entry in self.entries]

    @property
    def staged(self) -> bool:
        """Whether the payload cannot be received into the flat buffer."""
        return bool(self.by_rows) or (self.payload_bytes > 0 and not self.runs)

    @classmethod
    def plan(
        cls,
        header: Header,
        layout: Layout,
        by_rows: Mapping[str, RowEntries] = _NO_ROWS,
        check: NameCheck = check_names,
    ) -> Landing:
        """Match a header with a layout.

        Args:
          header: its entries are whole tensors, but for those that are in ``by_rows``.
          check: which of the layout's tensors there must be.

        Raises: TensorMismatch, ShapeMismatch, InvalidField.
        """
        halves = {half.name for pair in by_rows.values() for half in pair}
        entries = [entry for entry in header.entries if entry.name not in halves] if halves else header.entries
        check(layout, {entry.name: None for entry in entries} | dict.fromkeys(by_rows))
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
        return cls(entries, header.payload_bytes, direct, by_rows, () if by_rows else runs_of(entries, layout.spans))

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
    """Reads the headers of one session's bodies, each of which holds every tensor.

    Args:
      layouts: what a body may hold, each the beginning of the next; it is held against the first that is long enough.
      by_rows: some rows of a tensor may come in place of all.
    """

    remembered: ClassVar[int] = 1
    """How many headers are alike but for their metadata, from one push to the next."""

    def __init__(self, *layouts: Layout, by_rows: bool = False) -> None:
        self._layouts = layouts
        self._by_rows = by_rows
        self._known = KnownHeaders[Landing](self.remembered)

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Check a header against the layout.

        Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, InvalidField, TooLarge.
        """
        known = self._known.find(raw)
        if known:
            return known
        header = read_header(raw, indices=ROWS if self._by_rows else None)
        landing = self._plan(header)
        self._known.keep(raw, landing)
        return landing, dict(header.metadata)

    def _plan(self, header: Header) -> Landing:
        most = self._layouts[-1]
        by_rows = pairs_in(header.entries, most) if self._by_rows else _NO_ROWS
        count = len(header.entries) - len(by_rows)  # two entries for one tensor
        fitting = (layout for layout in self._layouts if count <= len(layout.tensors))
        return Landing.plan(header, next(fitting, most), by_rows)


class PartReader(HeaderReader):
    """Reads the headers of bodies that hold some of one session's tensors, each whole.

    Args:
      layout: what all of them together may hold.
    """

    remembered = 64

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout, by_rows=True)  # read as such, to say why they are refused

    def _plan(self, header: Header) -> Landing:
        (layout,) = self._layouts
        require_whole(header.entries, layout)
        return Landing.plan(header, layout, check=check_some)
