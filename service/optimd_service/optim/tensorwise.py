"""What optimizers that look at tensors one by one have in common: views in the tensor's shape, and the norms' sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LONGEST_NAME_SHOWN
from optimd_service.optim.kernel import Sums, sums_between

Shape = tuple[int, ...]
# The weight of a convolution over volumes has 5, and few tensors have more.
MOST_DIMENSIONS = 5
# From one computation of roots or bases to the next; far beyond sense, and a number that every library can hold.
MOST_STEPS = 1_000_000


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


def refuse_many_dimensions(tensors: Mapping[str, Shape]) -> None:
    """Refuse tensors of more dimensions than there are names for buffers. Raises: InvalidField, naming the first."""
    detail = f"This optimizer takes at most {MOST_DIMENSIONS} dimensions: create the session with adamw, or reshape it."
    refuse_where(lambda shape: len(shape) > MOST_DIMENSIONS, tensors, detail)


def numbered(*names: str) -> tuple[str, ...]:
    """The names of lists of buffers that have one for each dimension."""
    return tuple(f"{name}_{i}" for name in names for i in range(MOST_DIMENSIONS))
