"""Blocks, kernel calls and norms of ``update_``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from optim_references import ROW, SETTINGS, FlatRun, Settings, gradients, layout_of

from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.catalogue import find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.kernel import Sums
from optimd_service.optim.update import Norms

every_setting = pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
ELEMENT_WISE = [(name, settings) for name, settings in SETTINGS if find(name).shapes is None]


class Shared:
    """Blocks worked on by three threads at once."""

    block = 997

    def each(self, function: Callable[[int], Any], starts: Iterable[int]) -> Iterable[Any]:
        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(function, starts))


@every_setting
def test_the_norms_are_those_of_the_change_and_of_the_new_weights(optimizer: str, settings: Settings) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    run = FlatRun(optimizer, settings, layout)
    for grads in gradients(layout, 3):
        old = run.params.clone()
        norms = run.step(grads)
        assert norms.update == pytest.approx((run.params.double() - old.double()).norm().item(), rel=1e-6)
        assert norms.param == pytest.approx(run.params.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize(("optimizer", "settings"), ELEMENT_WISE)
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_blocks_give_the_bits_that_one_call_gives(optimizer: str, settings: Settings, wire: torch.dtype) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    whole, blocks = FlatRun(optimizer, settings, layout), FlatRun(optimizer, settings, layout, block=997)
    for grads in gradients(layout, 20):
        norms = [run.step(grads.to(wire)) for run in (whole, blocks)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert torch.equal(blocks.params, whole.params)
    for name, buffer in blocks.flat.items():
        assert torch.equal(buffer, whole.flat[name]), name


@every_setting
def test_the_number_of_workers_changes_no_bit_of_weights_or_norms(optimizer: str, settings: Settings) -> None:
    layout = layout_of(ROW[optimizer].shapes)
    alone, shared = FlatRun(optimizer, settings, layout, block=997), FlatRun(optimizer, settings, layout)
    shared.place = Shared()
    for grads in gradients(layout, 5):
        assert alone.step(grads) == shared.step(grads)
    assert torch.equal(alone.params, shared.params)


def counting(run: FlatRun) -> list[int]:
    """Have ``run`` note the length of every kernel call."""
    lengths: list[int] = []
    step_ = run.optimizer.step_

    def noted(group: FlatGroup, hyper: Hyperparameters) -> Sums:
        lengths.append(group.params.numel())
        return step_(group, hyper)

    run.optimizer = dataclasses.replace(run.optimizer, step_=noted)
    return lengths


def test_2000_tensors_in_two_groups_are_two_kernel_calls() -> None:
    run = FlatRun("adamw", {}, layout_of([(5, 2)] * 2000))
    lengths = counting(run)
    run.step(torch.ones(20_000))
    assert lengths == [10_000, 10_000]


def test_a_group_longer_than_a_block_is_walked_in_blocks() -> None:
    run = FlatRun("sgd", {}, layout_of([(BLOCK + 3,), (2,)]))
    lengths = counting(run)
    run.step(torch.ones(BLOCK + 5))
    assert lengths == [2, BLOCK, 3]


def test_an_empty_group_moves_nothing() -> None:
    run = FlatRun("adamw", {}, layout_of([(0,), (0, 4)]))
    assert run.step(torch.zeros(0)) == Norms(0.0, 0.0)


def test_norms_of_weights_whose_squares_pass_float32_are_still_numbers() -> None:
    run = FlatRun("sgd", {"lr": 1.0}, layout_of([(2,), (0,)]))
    run.params.zero_()
    assert run.step(torch.tensor([3e30, 4e30])) == pytest.approx((5e30, 5e30), rel=1e-6)


def test_norms_of_parts_join_as_2_norms() -> None:
    assert Norms.joined([Norms(3.0, 5.0), Norms(4.0, 12.0)]) == Norms(5.0, 13.0)
    assert math.isnan(Norms.joined([Norms(math.nan, 1.0)]).update)
