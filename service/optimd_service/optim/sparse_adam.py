"""Adam for a few rows of a long table: the rows that a batch did not look up are not touched.

An embedding's gradient is zero but for the rows of its batch. Pushed as those rows alone, it costs what they cost,
however long the table is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from optimd_service.errors import InvalidField, ShapeMismatch
from optimd_service.optim.adam import walk
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Betas, Eps, Hyperparameters, LearningRate
from optimd_service.optim.kernel import Sums, element, loop, mean, mean_of_squares, square, widen
from optimd_service.optim.tensorwise import Shape, flattened, refuse_where


class SparseAdam(Hyperparameters):
    lr: LearningRate = 1e-3
    betas: Betas = Field((0.9, 0.999), description="Decay per step of the means of g and of g², in the rows sent.")
    eps: Eps = 1e-8


def state(_hyper: SparseAdam) -> tuple[str, ...]:
    """Names of the buffers that these hyperparameters need."""
    return ("exp_avg", "exp_avg_sq")


def shapes(hyper: SparseAdam, shape: Shape) -> Mapping[str, Shape]:
    """Both means have the shape of the table."""
    return dict.fromkeys(state(hyper), shape)


def takes_rows(_hyper: SparseAdam) -> bool:
    """It is made for them."""
    return True


def check(_hyper: SparseAdam, tensors: Mapping[str, Shape]) -> None:
    """Refuse tensors that are no tables. Raises: InvalidField, naming the first."""
    refuse_where(
        lambda shape: len(shape) != 2,
        tensors,
        "sparse_adam takes tables of rows only: create a second session, with adam for example, for everything that is "
        "not 2-D.",
    )


class RowSums(NamedTuple):
    """Sums of squares over the rows of an update, in float64: of new − old weights, of the old, and of the new."""

    change: float
    before: float
    after: float


class RowGradients(NamedTuple):
    """The rows of a table that have a gradient.

    Attributes:
      rows: shape [k], int64; each once, ascending.
      values: shape [k, width], dtype of the weights or bfloat16; read only.
    """

    rows: Tensor
    values: Tensor


def coalesce_rows(rows: Tensor, values: Tensor, height: int) -> RowGradients:
    """Sort rows, and add up the gradients of those that are there more than once.

    Args:
      rows: shape [k], int64, in any order.   values: shape [k, width].   height: rows of the table.

    Returns: views of what was given where it is in order already. bfloat16 is added up in float32, in the order given.

    Raises: ShapeMismatch; InvalidField for a row that the table does not have.
    """
    if rows.dtype is not torch.int64 or rows.ndim != 1:
        raise InvalidField("Row indices are int64, in one dimension.", field="rows")
    if values.ndim != 2 or len(values) != len(rows):
        expected, got = [len(rows), "width"], list(values.shape)
        raise ShapeMismatch(f"{len(rows)} rows have gradients of shape {got}.", expected=expected, got=got)
    if len(rows) and not 0 <= rows.min().item() <= rows.max().item() < height:
        raise InvalidField(f"A row index lies outside 0 … {height - 1}, the rows of the tensor.", field="rows")
    if _ascending(rows):
        return RowGradients(rows, values)
    unique, places = torch.unique(rows, sorted=True, return_inverse=True)
    wide = values.float() if values.dtype is torch.bfloat16 else values
    return RowGradients(unique, torch.zeros(len(unique), values.shape[1], dtype=wide.dtype).index_add_(0, places, wide))


def _ascending(rows: Tensor) -> bool:
    return bool((rows[1:] > rows[:-1]).all())


def step_(group: FlatGroup, hyper: SparseAdam) -> Sums:
    """Apply one step to the rows of a table that have a gradient, ``sparse_adam_``, or to all of them.

    All of them are Adam's own loop: the bias correction of v lies in the rate, and so ε comes before it.

    Args:
      group: with its ``shape``; ``rows`` may be None, for all.

    Returns: sums over the rows stepped.
    """
    if group.rows is None:
        constants = group.constants(0.0, 1.0, *_constants(group.step, hyper), 1.0, hyper.eps)
        p, g, m, v = flattened(group).arrays(*state(hyper))
        return Sums(*walk(p, g, m, v, None, *constants))
    if not group.grads.numel():
        return Sums(0.0, 0.0)
    sums = sparse_adam_(group, RowGradients(group.rows, group.grads.view(len(group.rows), -1)), hyper)
    return Sums(sums.change, sums.after)


def sparse_adam_(group: FlatGroup, grads: RowGradients, hyper: SparseAdam) -> RowSums:
    """Apply one Adam step to some rows of one table [height, width], in place.

    In the rows sent, with t = step, the number of this update of the table, whichever rows it had:
        m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
        p ← p − lr · √(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε)
    No byte of another row is written: their means do not decay, and they do not move on with old momentum.

    Args:
      group: params shape [height · width], exp_avg and exp_avg_sq in any shape of as many elements; its grads are not
        looked at.
      grads: as ``coalesce_rows`` gives them.

    Raises: ShapeMismatch or InvalidField, before anything is written; the loop checks no bounds.
    Cost: reads 16 and writes 12 bytes for each float32 parameter of the rows sent, and looks at no other.
    Source: defaults and arithmetic of torch.optim.SparseAdam. ε is added before bias correction, unlike in Adam, and a
        row that is rarely sent is corrected as if it had been sent every time.
    """
    p, m, v = (buffer.view(-1).numpy() for buffer in (group.params, group.state["exp_avg"], group.state["exp_avg_sq"]))
    _require_fit(grads, p, m, v)
    constants = group.constants(*_constants(group.step, hyper), hyper.eps)
    values = grads.values.contiguous()
    g = (values.view(torch.uint16) if values.dtype is torch.bfloat16 else values).numpy()
    return RowSums(*_walk(p, grads.rows.numpy(), g, m, v, *constants))


def _constants(step: int, hyper: SparseAdam) -> tuple[float, ...]:
    """1 − β₁, β₂, 1 − β₂, and the rate, which has the whole bias correction in it."""
    beta1, beta2 = hyper.betas
    return 1 - beta1, beta2, 1 - beta2, -hyper.lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)


def _require_fit(grads: RowGradients, p: Any, *others: Any) -> None:
    rows, (count, width) = grads.rows, grads.values.shape
    sizes = [array.size for array in others]
    if len(rows) != count or any(size != p.size for size in sizes) or (width and p.size % width):
        detail = f"{len(rows)} rows, gradients [{count}, {width}], {p.size} weights and state of {sizes} do not fit."
        raise ShapeMismatch(detail, expected=[len(rows), width], got=[count, width])
    if count and not (_ascending(rows) and rows[0].item() >= 0 and (rows[-1].item() + 1) * width <= p.size):
        raise InvalidField("Row indices must ascend, each once, within the tensor.", field="rows")


@loop
def _walk(p: Any, rows: Any, g: Any, m: Any, v: Any, new1: Any, beta2: Any, new2: Any, rate: Any, eps: Any) -> Any:
    change = before = after = 0.0
    width = g.shape[1]
    for k in range(rows.size):
        # Slices, counted from 0: an index that might be negative would keep the loop from vector instructions.
        at = slice(rows[k] * width, rows[k] * width + width)
        row, first, second = p[at], m[at], v[at]
        for j in range(row.size):
            old, grad = row[j], widen(g[k, j])
            first[j] = mean(first[j], grad, new1)
            second[j] = mean_of_squares(second[j], grad, beta2, new2)
            row[j] = _moved(old, first[j], second[j], rate, eps)
            change += square(row[j] - old)
            before += square(old)
            after += square(row[j])
    return change, before, after


@element
def _moved(p: Any, m: Any, v: Any, rate: Any, eps: Any) -> Any:
    return p + rate * m / (np.sqrt(v) + eps)
