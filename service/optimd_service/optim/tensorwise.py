"""What optimizers that look at tensors one by one have in common: views in the tensor's shape, and the norms' sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LONGEST_NAME_SHOWN
from optimd_service.optim.kernel import Sums, sums_between

Shape = tuple[int, ...]


def representable(rate: float, group: FlatGroup) -> float:
    """A rate ≥ 0, but no more than the dtype's largest number.

    A norm that is all but 0 makes a rate infinite in float32, and infinity times an element that is 0 is NaN.
    """
    return min(rate, torch.finfo(group.params.dtype).max)


def flattened(group: FlatGroup) -> FlatGroup:
    """The same memory with state of shape [n], for optimizers whose state has the shape of the weights."""
    return group._replace(state={name: buffer.view(-1) for name, buffer in group.state.items()})


def stepped_(group: FlatGroup, update_: Callable[[Tensor, Tensor], None]) -> Sums:
    """Let ``update_`` change one tensor, and sum the squares of what it did.

    Args:
      update_: takes weights and gradients in the tensor's own shape, both in the dtype of the weights; writes to the
        weights, never to the gradients. It is not called for a tensor without elements.

    Cost: beside the update itself one copy of the weights, and of gradients that are bfloat16.
    """
    params = group.params
    if params.numel() == 0:
        return Sums(0.0, 0.0)
    shape = params.shape if group.shape is None else group.shape
    old = params.clone()
    update_(params.view(shape), group.grads.to(params.dtype).view(shape))
    return Sums(*sums_between(params.numpy(), old.numpy()))


def refuse_where(refused: Callable[[Shape], bool], tensors: Mapping[str, Shape], detail: str) -> None:
    """Raise InvalidField for the first tensor whose shape is refused.

    Args:
      tensors: name → shape.
      detail: what is asked of tensors and what to do; the tensor's name and shape go before it.
    """
    for name, shape in tensors.items():
        if refused(shape):
            shown = name[:LONGEST_NAME_SHOWN]
            raise InvalidField(f"Tensor '{shown}' has shape {list(shape)}. {detail}", field="tensors")
