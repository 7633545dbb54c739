"""Optimizer state on its way out and in, under torch's names: `<tensor>.<buffer>`.

A buffer that no update has written is absent, as it is from torch's ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from optimd_service.errors import InvalidField
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.facts import refuse_unknown
from optimd_service.session.settings import Settings
from optimd_service.store.contract import Working
from optimd_service.types import Layout, TensorSpec
from optimd_service.wire.landing import Landing
from optimd_service.wire.received import SafetensorsBody
from optimd_service.wire.safetensors import Header, read_header

SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg"})
_FIELDS = frozenset({"optimizer", "step", "etag"})


Buffers = frozenset[tuple[str, str]]
"""(group, buffer) of each buffer that there is."""


def state_layout(layout: Layout, buffers: Buffers) -> Layout:
    """The state as a layout of its own, whose group names are the buffers'."""
    names = sorted({buffer for _, buffer in buffers})
    tensors = [
        TensorSpec(f"{tensor.name}.{buffer}", tensor.shape, buffer)
        for tensor in layout.tensors
        for buffer in names
        if (tensor.group, buffer) in buffers
    ]
    return Layout.arrange(tensors, names, layout.dtype)


def export_state(
    working: Working, layout: Layout, settings: Settings
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Copy the state: metadata, and `<tensor>.<buffer>` → tensor in its own shape."""
    tensors = {}
    for name in state_layout(layout, frozenset(working.started)).spans:
        owner, _, buffer = name.rpartition(".")
        start, stop = layout.spans[owner]
        tensors[name] = working.state[buffer][start:stop].clone().view(layout.shapes[owner])
    return {"optimizer": settings.optimizer.name, "step": str(working.updates)}, tensors


class StateHeaders:
    """Reads the header of a state body: for each group it must hold all of the buffers it needs, or none.

    Attributes:
      buffers, expected: those of the header read last, and their layout.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self._layout = layout
        self._settings = settings
        self.buffers: Buffers = frozenset()
        self.expected: Layout = state_layout(layout, self.buffers)

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, TooLarge."""
        header = read_header(raw)
        self.buffers = self._buffers_of(header)
        self.expected = state_layout(self._layout, self.buffers)
        return Landing.plan(header, self.expected), dict(header.metadata)

    def _buffers_of(self, header: Header) -> Buffers:
        group_of = {tensor.name: tensor.group for tensor in self._layout.tensors}
        named = {entry.name.rpartition(".")[::2] for entry in header.entries}
        held = {(group_of[owner], buffer) for owner, buffer in named if owner in group_of}
        optimizer, resolved = self._settings.optimizer, self._settings.resolved
        needed = {(group, buffer) for group, _ in held for buffer in optimizer.state(resolved[group])}
        return frozenset(needed | {(group, buffer) for group, buffer in held if buffer in optimizer.optional_state})


@dataclass(frozen=True)
class StateBody:
    """A state body that has arrived whole.

    Attributes:
      buffers: that it holds.
      layout: of the body's own tensors.   session: of the session's.
    """

    received: SafetensorsBody
    buffers: Buffers
    layout: Layout
    session: Layout


def import_state_(body: StateBody, settings: Settings) -> Callable[[Working], Any]:
    """Check a state body, and return what writes it.

    Raises: InvalidField, NonfiniteParams.
    """
    updates = _updates(body.received.metadata, settings)
    flat = torch.empty(body.layout.numel, dtype=body.layout.dtype)
    body.received.land_(flat, body.layout)
    refuse_nonfinite(flat, body.layout)
    _refuse_negative(flat, body.layout)
    return lambda working: _write_(working, body, flat, updates)


def _refuse_negative(flat: torch.Tensor, layout: Layout) -> None:
    for name, (start, stop) in layout.spans.items():
        if name.rpartition(".")[2] in SQUARES and bool((flat[start:stop] < 0).any()):
            raise InvalidField(f"{name!r} is a mean of squares and holds negative numbers.", field=name)


def _updates(metadata: dict[str, str], settings: Settings) -> int:
    fields = {name: text for name, text in metadata.items() if name != "format"}
    refuse_unknown(fields, _FIELDS)
    if fields.get("optimizer", settings.optimizer.name) != settings.optimizer.name:
        raise InvalidField(
            f"The state is of {fields['optimizer'][:80]!r}, the session's optimizer is {settings.optimizer.name!r}.",
            field="optimizer",
        )
    step = fields.get("step", "")
    if not (step.isascii() and step.isdigit() and len(step) < 16):
        raise InvalidField(
            "`__metadata__` must hold `step`: how many updates these moments have seen, as digits.", field="step"
        )
    return int(step)


def _write_(working: Working, body: StateBody, flat: torch.Tensor, updates: int) -> None:
    for buffer in working.state.values():
        buffer.zero_()
    for name, (start, stop) in body.layout.spans.items():
        owner, _, buffer_name = name.rpartition(".")
        at = body.session.spans[owner]
        working.state[buffer_name][at.start : at.stop] = flat[start:stop]
    working.updates = updates
    working.started = set(body.buffers)
