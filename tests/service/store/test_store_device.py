"""How the device store keeps its promises cheaply."""

from __future__ import annotations

import torch

from optimd_service.store.device import DeviceStore
from optimd_service.types import BufferSize, Layout, TensorSpec, Version

LAYOUT = Layout.arrange([TensorSpec("w", (4,))], ["default"], torch.float32)
GRADS = BufferSize(4, torch.float32)


def test_weights_that_nobody_reads_are_written_in_place() -> None:
    state = DeviceStore(10**6).create("s", LAYOUT, {}, GRADS)
    at = state.begin({}).params.data_ptr()
    state.snapshot().release()
    assert state.begin({}).params.data_ptr() == at


def test_weights_that_somebody_reads_are_written_elsewhere() -> None:
    state = DeviceStore(10**6).create("s", LAYOUT, {}, GRADS)
    held = state.snapshot()
    working = state.begin({})
    assert working.params.data_ptr() != held.params.data_ptr()
    state.commit(working, Version(1, 0), {})
    assert state.snapshot().params.data_ptr() == working.params.data_ptr()


def test_memory_that_was_read_is_used_again() -> None:
    state = DeviceStore(10**6).create("s", LAYOUT, {}, GRADS)
    places = set()
    for step in range(10):
        held = state.snapshot()
        working = state.begin({})
        places.add(working.params.data_ptr())
        state.commit(working, Version(step + 1, 0), {})
        held.release()
    assert len(places) == 2
