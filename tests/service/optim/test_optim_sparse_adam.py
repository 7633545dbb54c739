"""Adam on rows, held against torch.optim.SparseAdam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optimd_service.errors import InvalidField, ShapeMismatch
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.sparse_adam import RowGradients, RowSums, SparseAdam, coalesce_rows, sparse_adam_

HEIGHT, WIDTH = 40, 5
HYPER = SparseAdam(lr=0.01, betas=(0.8, 0.99), eps=1e-6)


class Table:
    """A table of weights with its means."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.params = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=dtype)
        self.state = {name: torch.zeros_like(self.params) for name in ("exp_avg", "exp_avg_sq")}
        self.steps = 0

    def step(self, grads: RowGradients) -> RowSums:
        self.steps += 1
        flat = self.params.view(-1)
        return sparse_adam_(FlatGroup(flat, flat[:0], self.state, self.steps), grads, HYPER)

    def buffers(self) -> list[Tensor]:
        return [self.params, *self.state.values()]


def batch(seed: int, dtype: torch.dtype = torch.float32, count: int = 12) -> tuple[Tensor, Tensor]:
    """Rows with repetitions, in no order, and their gradients."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(HEIGHT, (count,), generator=generator)
    return rows, torch.randn(count, WIDTH, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_fifty_steps_end_where_torchs_sparse_adam_ends(dtype: torch.dtype, tolerance: float) -> None:
    table, wanted = Table(dtype), Table(dtype).params
    reference = torch.optim.SparseAdam([wanted], **dict(HYPER))
    for seed in range(50):
        rows, values = batch(seed, dtype)
        table.step(coalesce_rows(rows, values, HEIGHT))
        wanted.grad = torch.sparse_coo_tensor(rows[None], values, (HEIGHT, WIDTH), check_invariants=True)
        reference.step()
    kept = reference.state[wanted]
    for got, want in zip(table.buffers(), [wanted, kept["exp_avg"], kept["exp_avg_sq"]], strict=True):
        assert ((got - want).abs().max() / want.abs().max()).item() < tolerance


def test_no_byte_of_another_row_is_touched() -> None:
    table = Table()
    table.step(coalesce_rows(torch.arange(HEIGHT), torch.ones(HEIGHT, WIDTH), HEIGHT))
    before = [buffer.clone() for buffer in table.buffers()]
    table.step(RowGradients(torch.tensor([0, 7, 39]), torch.ones(3, WIDTH)))
    others = torch.tensor([row for row in range(HEIGHT) if row not in {0, 7, 39}])
    for buffer, old in zip(table.buffers(), before, strict=True):
        assert torch.equal(buffer[others].view(torch.uint8), old[others].view(torch.uint8))
        assert (buffer[[0, 7, 39]] != old[[0, 7, 39]]).all()


def test_rows_sent_twice_are_added_up_as_torch_coalesces_them() -> None:
    rows, values = batch(3, count=30)
    assert len(rows.unique()) < len(rows)
    grads = coalesce_rows(rows, values, HEIGHT)
    wanted = torch.sparse_coo_tensor(rows[None], values, (HEIGHT, WIDTH), check_invariants=True).coalesce()
    assert torch.equal(grads.rows, wanted.indices()[0])
    torch.testing.assert_close(grads.values, wanted.values(), rtol=1e-6, atol=1e-7)


def test_rows_in_order_are_not_copied() -> None:
    rows, values = torch.tensor([1, 4, 9]), torch.ones(3, WIDTH)
    grads = coalesce_rows(rows, values, HEIGHT)
    assert grads.rows is rows
    assert grads.values is values


def test_bfloat16_rows_step_as_the_float32_they_stand_for() -> None:
    narrow, wide = Table(), Table()
    for seed, count in enumerate([12, 1, 30]):
        rows, values = batch(seed, count=count)
        narrow.step(coalesce_rows(rows, values.bfloat16(), HEIGHT))
        wide.step(coalesce_rows(rows, values.bfloat16().float(), HEIGHT))
    assert all(torch.equal(a, b) for a, b in zip(narrow.buffers(), wide.buffers(), strict=True))


def test_the_sums_are_those_of_the_rows_sent() -> None:
    table, grads = Table(), coalesce_rows(*batch(5), HEIGHT)
    old = table.params[grads.rows].double()
    sums = table.step(grads)
    new = table.params[grads.rows].double()
    assert sums.before == pytest.approx(old.square().sum().item(), rel=1e-12)
    assert sums.after == pytest.approx(new.square().sum().item(), rel=1e-12)
    assert sums.change == pytest.approx((new - old).square().sum().item(), rel=1e-5)


def test_no_rows_change_nothing() -> None:
    table, untouched = Table(), Table()
    none = coalesce_rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, WIDTH), HEIGHT)
    assert table.step(none) == RowSums(0.0, 0.0, 0.0)
    assert torch.equal(table.params, untouched.params)


@pytest.mark.parametrize("row", [-1, HEIGHT])
def test_a_row_that_the_table_lacks_is_refused(row: int) -> None:
    with pytest.raises(InvalidField, match="0 … 39") as refusal:
        coalesce_rows(torch.tensor([3, row]), torch.ones(2, WIDTH), HEIGHT)
    assert refusal.value.evidence["field"] == "rows"


@pytest.mark.parametrize("rows", [[-1, 3], [3, HEIGHT], [3, 3], [4, 3]], ids=str)
def test_the_step_itself_refuses_rows_that_its_loop_would_miswrite(rows: list[int]) -> None:
    table, untouched = Table(), Table()
    with pytest.raises(InvalidField, match="ascend"):
        table.step(RowGradients(torch.tensor(rows), torch.ones(2, WIDTH)))
    assert torch.equal(table.params, untouched.params)


def test_gradients_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        coalesce_rows(torch.tensor([1, 2]), torch.ones(3, WIDTH), HEIGHT)
    with pytest.raises(InvalidField, match="int64"):
        coalesce_rows(torch.tensor([1, 2], dtype=torch.int32), torch.ones(2, WIDTH), HEIGHT)
    with pytest.raises(ShapeMismatch):
        Table().step(RowGradients(torch.tensor([1, 2]), torch.ones(2, 3)))
    with pytest.raises(ShapeMismatch):
        Table().step(RowGradients(torch.tensor([1, 2]), torch.ones(3, WIDTH)))
