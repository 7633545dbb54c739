"""Updates on a device against those of the host, whose own tests hold them to torch.optim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim_references import SETTINGS, SHAPES, FlatRun, Settings, deviation, gradients, layout_of
from torch import Tensor

from optimd_service.errors import ShapeMismatch
from optimd_service.optim import on_device
from optimd_service.optim.catalogue import OPTIMIZERS, find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.judge import judge, zero_nonfinite_
from optimd_service.optim.pnorm import p_norm
from optimd_service.optim.update import Here, update_
from optimd_service.types import Layout

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
STEPS = 50
BLOCK = 1500  # several to a group, and the last one short
ON_DEVICE = [(name, settings) for name, settings in SETTINGS if name in on_device.STEPS]
every_setting = pytest.mark.parametrize(("optimizer", "settings"), ON_DEVICE)


class DeviceRun(FlatRun):
    """The same run, with every buffer on a device."""

    def __init__(self, device: Any, optimizer: str, settings: Settings, layout: Layout) -> None:
        super().__init__(optimizer, settings, layout, BLOCK)
        self.params = device.put(self.params)
        self.flat = {name: device.put(buffer) for name, buffer in self.flat.items()}
        self.scratch = device.put(torch.full((on_device.scratch_numel(BLOCK),), math.nan, dtype=layout.dtype))

    def _update(self, grads: Tensor, name: str) -> Any:
        whole = FlatGroup(self.params, grads, self.flat, self.steps, self.steps == 1, scratch=self.scratch)
        return update_(self.optimizer, whole.part(*self.layout.groups[name]), self.hyper[name], self.place)


@every_setting
@pytest.mark.parametrize("wire", [F32, BF16, F64], ids=str)
def test_weights_state_and_norms_are_the_hosts(
    device: Any, optimizer: str, settings: Settings, wire: torch.dtype
) -> None:
    layout = layout_of(SHAPES, F64 if wire is F64 else F32)
    here, there = FlatRun(optimizer, settings, layout, BLOCK), DeviceRun(device, optimizer, settings, layout)
    for flat in gradients(layout, STEPS):
        grads = flat.to(wire)
        assert there.step(device.put(grads)) == pytest.approx(here.step(grads), rel=device.tolerance)
    assert there.flat.keys() == here.flat.keys()
    for ours, theirs in zip((there.params, *there.flat.values()), (here.params, *here.flat.values()), strict=True):
        assert deviation(ours.to("cpu"), theirs) <= device.tolerance


def test_the_table_names_optimizers_of_the_catalogue() -> None:
    assert on_device.STEPS.keys() <= OPTIMIZERS.keys()
    assert on_device.LONGEST.keys() <= on_device.STEPS.keys()


@every_setting
def test_gradients_are_left_as_they_came(device: Any, optimizer: str, settings: Settings) -> None:
    layout = layout_of(SHAPES)
    (grads,) = gradients(layout, 1)
    there = device.put(grads)
    DeviceRun(device, optimizer, settings, layout).step(there)
    assert torch.equal(there.to("cpu"), grads)


@every_setting
def test_gradients_as_long_as_they_may_be_leave_numbers_that_are_finite(
    device: Any, optimizer: str, settings: Settings
) -> None:
    layout = layout_of([(3,), (3,)])
    run = DeviceRun(device, optimizer, settings, layout)
    longest = min(on_device.LONGEST.get(optimizer, math.inf), 1e18)
    run.step(device.put(torch.full((layout.numel,), longest / math.sqrt(layout.numel))))
    assert all(bool(buffer.isfinite().all()) for buffer in (run.params, *run.flat.values()))


def test_centered_rmsprop_survives_a_variance_that_rounds_below_zero(device: Any) -> None:
    run = DeviceRun(device, "rmsprop", {"centered": True, "alpha": 0.5}, layout_of([(500,), (500,)]))
    grads = device.put(torch.linspace(0.1, 1, 1000))
    negative = 0
    for _ in range(60):
        run.step(grads)
        negative += int((run.flat["square_avg"] - run.flat["grad_avg"] ** 2 < 0).sum())
    assert negative
    assert run.params.isfinite().all()


@pytest.mark.parametrize("name", on_device.STEPS)
def test_a_buffer_of_another_length_is_refused_before_a_weight_changes(device: Any, name: str) -> None:
    optimizer = find(name)
    hyper = optimizer.parse({"momentum": 0.9} if name == "sgd" else {}, where="optimizer")
    params = device.put(torch.ones(5))
    for wrong in ("grads", *optimizer.state(hyper)):
        state = {buffer: device.put(torch.zeros(4 if buffer == wrong else 5)) for buffer in optimizer.state(hyper)}
        grads = device.put(torch.ones(4 if wrong == "grads" else 5))
        group = FlatGroup(params, grads, state, 1, scratch=device.put(torch.zeros(15)))
        with pytest.raises(ShapeMismatch):
            update_(optimizer, group, hyper, Here())
        assert torch.equal(params.to("cpu"), torch.ones(5))


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
def test_norms_are_the_hosts_whatever_their_size(device: Any, dtype: torch.dtype, size: float) -> None:
    flat = (torch.randn(3001, generator=torch.Generator().manual_seed(0), dtype=F64) * size).to(dtype)
    for p in (1.0, 2.0, 3.0, math.inf):
        assert p_norm(device.put(flat), p) == pytest.approx(p_norm(flat, p), rel=1e-12)


def test_a_norm_in_float64_does_not_overflow(device: Any) -> None:
    assert judge(device.put(torch.full((4,), 1e300, dtype=F64))) == pytest.approx(2e300)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found_and_zeroed(device: Any, value: float) -> None:
    grads = device.put(torch.tensor([1.0, value, 2.0]))
    assert not judge(grads) < math.inf
    zero_nonfinite_(grads)
    assert grads.tolist() == [1.0, 0.0, 2.0]
