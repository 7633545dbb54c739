"""Optimizer state on its way out, under torch's names: `<tensor>.<buffer>`.

A buffer that no update has written is absent, as it is from torch's ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from optimd_service.session.moments import read_buffer
from optimd_service.session.plan import Pieces, Plan, numbers_of
from optimd_service.store.contract import Working
from optimd_service.types import Layout, TensorSpec
from optimd_service.wire.json import write_json

Present = Collection[tuple[str, str]]
"""(group, buffer) of each buffer that there is."""


def pieces_of(plan: Plan, buffer: str) -> Pieces:
    """Where tensors lie in a state buffer, also in one that the hyperparameters need no more."""
    return plan.pieces.get(buffer) or Pieces.like(plan.layout)


def state_layout(plan: Plan, present: Present) -> Layout:
    """The state as a layout of its own, whose group names are the buffers'."""
    names = sorted({buffer for _, buffer in present})
    pieces = {name: pieces_of(plan, name) for name in names}
    tensors = [
        TensorSpec(f"{tensor.name}.{buffer}", pieces[buffer].shapes[tensor.name], buffer)
        for tensor in plan.layout.trained.tensors
        for buffer in names
        if (tensor.group, buffer) in present and tensor.name in pieces[buffer].spans
    ]
    return Layout.arrange(tensors, names, plan.layout.dtype)


def export_state(working: Working, plan: Plan) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Copy the state: metadata, and `<tensor>.<buffer>` → tensor in its own shape."""
    layout = state_layout(plan, working.started)
    flats = {buffer: read_buffer(working, plan, buffer) for buffer in layout.groups}
    tensors = {}
    for spec in layout.tensors:
        owner, _, buffer = spec.name.rpartition(".")
        tensors[spec.name] = pieces_of(plan, buffer).view(flats[buffer], owner).to("cpu", copy=True)
    metadata = {"optimizer": plan.settings.optimizer.name, "step": str(working.updates)}
    held = {group: working.numbers.get(numbers_of(group)) for group in plan.layout.groups}
    numbers = {group: of_group for group, of_group in held.items() if of_group}
    if numbers:
        metadata["numbers"] = write_json(numbers).decode()
    return metadata, tensors
