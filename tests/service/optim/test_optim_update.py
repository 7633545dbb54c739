"""Blocks, kernel calls and norms of ``update_``."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from optim_references import SETTINGS, SHAPES, FlatRun, Settings, deviation, gradients, layout_of
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.update import BLOCK, Norms, new_scratch


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_the_norms_are_those_of_the_change_and_of_the_new_weights(optimizer: str, settings: Settings) -> None:
    layout = layout_of(SHAPES)
    run = FlatRun(optimizer, settings, layout)
    for grads in gradients(layout, 3):
        old = run.params.clone()
        norms = run.step(grads)
        assert norms.update == pytest.approx((run.params.double() - old.double()).norm().item(), rel=1e-6)
        assert norms.param == pytest.approx(run.params.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_blocks_give_what_one_call_gives(optimizer: str, settings: Settings) -> None:
    layout = layout_of(SHAPES)
    whole, blocks = FlatRun(optimizer, settings, layout), FlatRun(optimizer, settings, layout)
    blocks.scratch = new_scratch(1000, layout.dtype)
    for grads in gradients(layout, 20):
        norms = [run.step(grads) for run in (whole, blocks)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert deviation(blocks.params, whole.params) <= 1e-6
    for name, buffer in blocks.state.items():
        assert deviation(buffer, whole.state[name]) <= 1e-6


def counting(run: FlatRun) -> list[int]:
    """Have ``run`` note the length of every kernel call."""
    lengths: list[int] = []
    step_ = run.optimizer.step_

    def noted(group: FlatGroup, hyper: Hyperparameters, work: Tensor) -> None:
        lengths.append(group.params.numel())
        step_(group, hyper, work)

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


def test_scratch_is_no_longer_than_the_longest_group_or_a_block() -> None:
    assert len(new_scratch(10, torch.float64)[0]) == 10
    assert len(new_scratch(10 * BLOCK, torch.float32)[0]) == BLOCK
