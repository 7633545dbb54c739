"""One update of some rows of a table: no byte of another row is written, and it costs what the rows cost."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.kernel import Sums
from optimd_service.optim.norm import norm
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.update import Norms, Workplace


def require_takes_rows(optimizer: Optimizer[Any], hyper: Hyperparameters, tensor: str) -> None:
    """Refuse rows of a tensor where a step could not be confined to them. Raises: InvalidField, naming the tensor."""
    if optimizer.takes_rows is None:
        reason = f"{optimizer.name} steps whole tensors"
    elif not optimizer.takes_rows(hyper):
        reason = f"{optimizer.name} with momentum or weight decay moves the other rows too"
    else:
        return
    raise InvalidField(
        f"Rows of tensor {tensor[:80]!r} came, and {reason}: push the tensor whole, with zeros in the other rows, or "
        "take sparse_adam.",
        field=tensor,
    )


def update_rows_(optimizer: Optimizer[Any], table: FlatGroup, hyper: Hyperparameters, place: Workplace) -> Norms:
    """Apply one step to some rows of one tensor, in place.

    Args:
      optimizer: one that takes rows with these ``hyper``.
      table: with ``shape`` [height, width] and ``rows``; buffers that do not begin at zero have been begun.
      place: where the weights are read for their norm.

    Returns: the norms of the tensor as a whole.
    Cost: that of the rows, and one read of all weights of the tensor, for their norm.
    """
    sums = optimizer.step_(table, hyper) if optimizer.shapes is not None else _step_gathered_(optimizer, table, hyper)
    return Norms(math.sqrt(sums.change), norm(table.params, place.each))


def _step_gathered_(optimizer: Optimizer[Any], table: FlatGroup, hyper: Hyperparameters) -> Sums:
    """Let an element-wise optimizer step a copy of the rows, and put them back."""
    shape, rows = table.shape, table.rows
    if shape is None or rows is None:
        raise TypeError("update_rows_ is given a table, with its shape, and rows of it.")

    def gathered(flat: Tensor) -> Tensor:
        return flat.view(shape)[rows].view(-1)

    part = table._replace(
        params=gathered(table.params),
        state={name: gathered(buffer) for name, buffer in table.state.items()},
        shape=None,
        rows=None,
    )
    sums = optimizer.step_(part, hyper)
    for flat, stepped in ((table.params, part.params), *((table.state[name], part.state[name]) for name in part.state)):
        flat.view(shape).index_copy_(0, rows, stepped.view(len(rows), shape[1]))
    return sums
