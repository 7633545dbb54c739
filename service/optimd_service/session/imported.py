"""Optimizer state on its way in, under torch's names, whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optimd_service.errors import InvalidField
from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.session.creation import refuse_nonfinite
from optimd_service.session.exported import pieces_of, state_layout
from optimd_service.session.facts import refuse_unknown
from optimd_service.session.moments import read_buffer, write_buffer_
from optimd_service.session.numbers import read_numbers
from optimd_service.session.plan import Plan, numbers_of
from optimd_service.store.contract import Working
from optimd_service.types import Buffers, BufferSize, Layout
from optimd_service.wire.landing import Landing
from optimd_service.wire.received import SafetensorsBody
from optimd_service.wire.safetensors import Header, read_header

SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"})
_FIELDS = frozenset({"optimizer", "step", "etag", "numbers"})


class StateHeaders:
    """Reads the header of a state body.

    Strictly, it must hold for each group all of the buffers that the group needs, or none. In part, it may hold any:
    what it does not hold stays as it is, and what the session has no place for is passed over.

    Attributes:
      present, expected: (group, buffer) of the header read last, and the layout of the tensors taken from it.
      passed_over: names of those not taken.
    """

    def __init__(self, plan: Plan, *, strict: bool = True) -> None:
        self.plan = plan
        self.strict = strict
        self.present: frozenset[tuple[str, str]] = frozenset()
        self.expected = Layout((), plan.layout.dtype)
        self.passed_over: tuple[str, ...] = ()

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, TooLarge."""
        header = read_header(raw)
        self.present = self._present_in(header)
        self.expected = state_layout(self.plan, self.present)
        if self.strict:
            return Landing.plan(header, self.expected), dict(header.metadata)
        taken = tuple(entry for entry in header.entries if entry.name in self.expected.spans)
        self.passed_over = tuple(entry.name for entry in header.entries if entry.name not in self.expected.spans)
        named = {entry.name for entry in taken}
        self.expected = Layout(tuple(t for t in self.expected.tensors if t.name in named), self.expected.dtype)
        landing = Landing.plan(Header(taken, header.metadata, header.payload_bytes), self.expected)
        return Landing(landing.entries, header.payload_bytes, direct=False), dict(header.metadata)

    def _present_in(self, header: Header) -> frozenset[tuple[str, str]]:
        group_of = {tensor.name: tensor.group for tensor in self.plan.layout.trained.tensors}
        named = {entry.name.rpartition(".")[::2] for entry in header.entries}
        held = {(group_of[owner], buffer) for owner, buffer in named if owner in group_of}
        optimizer, resolved = self.plan.settings.optimizer, self.plan.settings.resolved
        needed = {(group, buffer) for group, _ in held for buffer in optimizer.state(resolved[group])}
        if not self.strict:
            needed &= held
        return frozenset(needed | {(group, buffer) for group, buffer in held if buffer in optimizer.optional_state})


@dataclass(frozen=True)
class StateBody:
    """A state body that has arrived whole, and the header reader that planned its landing."""

    received: SafetensorsBody
    headers: StateHeaders

    @property
    def sizes(self) -> Buffers:
        """Of the buffers that it writes."""
        plan = self.headers.plan
        names = {buffer for _, buffer in self.headers.present}
        return {tensor: BufferSize(*stored) for name in names for tensor, stored in plan.stored(name).items()}


def import_state_(body: StateBody) -> Callable[[Working], Any]:
    """Check a state body, and return what writes it.

    Raises: InvalidField, NonfiniteParams.
    """
    plan, layout = body.headers.plan, body.headers.expected
    updates = _updates(body.received.metadata, plan)
    numbers = read_numbers(body.received.metadata, updates, plan)
    if body.headers.strict:
        numbers = {group: {**plan.settings.optimizer.numbers, **numbers.get(group, {})} for group in plan.layout.groups}
    flat = torch.empty(layout.numel, dtype=layout.dtype)
    body.received.land_(flat, layout)
    refuse_nonfinite(flat, layout)
    _refuse_negative(flat, layout)
    return lambda working: _write_(working, body, flat, updates, numbers)


def _refuse_negative(flat: torch.Tensor, layout: Layout) -> None:
    for name, (start, stop) in layout.spans.items():
        if name.rpartition(".")[2] in SQUARES and bool((flat[start:stop] < 0).any()):
            raise InvalidField(f"{name!r} is a mean of squares and holds negative numbers.", field=name)


def _updates(metadata: dict[str, str], plan: Plan) -> int:
    fields = {name: text for name, text in metadata.items() if name != "format"}
    refuse_unknown(fields, _FIELDS)
    optimizer = plan.settings.optimizer.name
    if fields.get("optimizer", optimizer) != optimizer:
        raise InvalidField(
            f"The state is of {fields['optimizer'][:80]!r}, the session's optimizer is {optimizer!r}.",
            field="optimizer",
        )
    step = fields.get("step", "")
    if not (step.isascii() and step.isdigit() and len(step) < 16):
        raise InvalidField(
            "`__metadata__` must hold `step`: how many updates these moments have seen, as digits.", field="step"
        )
    return int(step)


def _begin_(working: Working, plan: Plan, groups: Collection[str]) -> None:
    """Fill what the first update of these groups would fill before it: once they have state, it fills nothing more."""
    optimizer, layout = plan.settings.optimizer, plan.layout
    begin_ = optimizer.begin_
    if begin_ is None:
        return
    for group in groups:
        hyper = plan.settings.resolved[group]
        buffers = optimizer.state(hyper)
        if any((group, buffer) in working.started for buffer in buffers):
            continue
        flats = {buffer: read_buffer(working, plan, buffer) for buffer in buffers}
        state = {buffer: layout.cut(flat, group) for buffer, flat in flats.items()}
        params = layout.cut(working.params, group)
        begin_(FlatGroup(params, torch.zeros_like(params), state, step=1), hyper)
        for buffer, flat in flats.items():
            write_buffer_(working, plan, buffer, flat)
        working.started.update((group, buffer) for buffer in buffers)


def _write_(
    working: Working, body: StateBody, flat: torch.Tensor, updates: int, numbers: Mapping[str, Numbers]
) -> None:
    headers, plan = body.headers, body.headers.plan
    if headers.strict:
        for buffer in {*plan.pieces, *(name for _, name in working.started)}:
            for tensor in plan.stored(buffer):
                working.state[tensor].zero_()
        working.started = set()
    else:
        _begin_(working, plan, {group for group, _ in headers.present})
    written = {buffer: read_buffer(working, plan, buffer) for buffer in headers.expected.groups}
    for name, span in headers.expected.spans.items():
        owner, _, buffer = name.rpartition(".")
        piece = pieces_of(plan, buffer).view(written[buffer], owner)
        piece.copy_(flat[span.start : span.stop].view(piece.shape))
    for buffer, whole in written.items():
        write_buffer_(working, plan, buffer, whole)
    working.updates = updates
    working.started |= headers.present
    for group, of_group in numbers.items() if plan.settings.optimizer.numbers else ():
        known = working.numbers.get(numbers_of(group), plan.settings.optimizer.numbers)
        working.numbers[numbers_of(group)] = {**known, **of_group}
