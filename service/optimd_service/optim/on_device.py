"""Updates of weights that lie in a device's own memory, by torch's operations.

The host's updates are loops that numba compiles for the CPU. Here each optimizer is one of torch's fused kernels or,
where torch has none, a handful of its operations in place. Formulas, defaults and names of state are those of the
optimizer's own file. Nothing is allocated that grows with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from optimd_service.optim.adagrad import Adagrad
from optimd_service.optim.adam import Adam
from optimd_service.optim.adamw import AdamW
from optimd_service.optim.flat_group import FlatGroup, require_alike
from optimd_service.optim.kernel import Sums
from optimd_service.optim.lion import Lion
from optimd_service.optim.rmsprop import RMSprop
from optimd_service.optim.sgd import SGD

# Of an update: a few launches cost nothing beside this many elements, and its scratch is small beside a model.
BLOCK = 2**22
# Copies of a block: two that a step works in, or one in float64 to sum squares in, and the weights as they were.
_COPIES = 3


def scratch_numel(longest: int) -> int:
    """Elements that an update works in, of a session whose longest group has ``longest``."""
    return _COPIES * min(BLOCK, longest)


def step_(name: str, group: FlatGroup, hyper: Any) -> Sums:
    """Apply one step of an optimizer of ``STEPS`` to a flat group in place, as its row in the catalogue would.

    Args:
      group: shape [n] each, on one device, with a ``scratch`` of at least 3·n elements.

    Raises: ShapeMismatch or KeyError, before anything is written.
    """
    params, scratch = group.params, group.scratch
    if scratch is None:
        raise TypeError("An update on a device needs scratch.")
    length = len(params)
    require_alike(params, grads=group.grads, **group.state)
    first, second, old = (scratch[i * length : (i + 1) * length] for i in range(_COPIES))
    old.copy_(params)
    grads = group.grads if group.grads.dtype is params.dtype else first.copy_(group.grads)
    STEPS[name](group._replace(grads=grads), hyper, first, second)
    wide = scratch[: 2 * length].view(torch.float64)[:length]
    return Sums(*torch.stack([_squares(torch.sub(params, old, out=old), wide), _squares(params, wide)]).tolist())


def _squares(flat: Tensor, wide: Tensor) -> Tensor:
    """The sum of squares, shape []."""
    total: Tensor = torch.linalg.vector_norm(wide.copy_(flat)).square()
    return total


def _count(group: FlatGroup) -> Tensor:
    """The number of the update as torch's kernels take it."""
    return group.params.new_full((), group.step, dtype=torch.float32)


def _decayed(group: FlatGroup, weight_decay: float, out: Tensor) -> Tensor:
    """The gradients and λ times the weights; themselves where λ is 0."""
    return torch.add(group.grads, group.params, alpha=weight_decay, out=out) if weight_decay else group.grads


# The kernels are called as torch.optim's classes call them with fused=True. Its public functions would count steps and
# begin momentum by themselves.


def _sgd_(group: FlatGroup, hyper: SGD, _first: Tensor, _second: Tensor) -> None:
    torch._fused_sgd_(
        [group.params],
        [group.grads],
        [group.state["momentum_buffer"]] if hyper.momentum else [],
        weight_decay=hyper.weight_decay,
        momentum=hyper.momentum,
        lr=hyper.lr,
        dampening=hyper.dampening,
        nesterov=hyper.nesterov,
        maximize=False,
        is_first_step=group.fresh,
    )


def _adam_(group: FlatGroup, hyper: Adam, _first: Tensor, _second: Tensor) -> None:
    _fused_adam_(torch._fused_adam_, group, hyper)


def _adamw_(group: FlatGroup, hyper: AdamW, _first: Tensor, _second: Tensor) -> None:
    _fused_adam_(torch._fused_adamw_, group, hyper)


def _fused_adam_(kernel: Callable[..., None], group: FlatGroup, hyper: Adam | AdamW) -> None:
    kernel(
        [group.params],
        [group.grads],
        [group.state["exp_avg"]],
        [group.state["exp_avg_sq"]],
        [group.state["max_exp_avg_sq"]] if hyper.amsgrad else [],
        [_count(group)],
        lr=hyper.lr,
        beta1=hyper.betas[0],
        beta2=hyper.betas[1],
        weight_decay=hyper.weight_decay,
        eps=hyper.eps,
        amsgrad=hyper.amsgrad,
        maximize=False,
    )


def _adagrad_(group: FlatGroup, hyper: Adagrad, _first: Tensor, _second: Tensor) -> None:
    torch._fused_adagrad_(
        [group.params],
        [group.grads],
        [group.state["sum"]],
        [_count(group)],
        lr=hyper.lr,
        lr_decay=hyper.lr_decay,
        weight_decay=hyper.weight_decay,
        eps=hyper.eps,
        maximize=False,
    )


def _rmsprop_(group: FlatGroup, hyper: RMSprop, first: Tensor, second: Tensor) -> None:
    params, state, new = group.params, group.state, 1 - hyper.alpha
    grads, squares = _decayed(group, hyper.weight_decay, first), state["square_avg"]
    squares.mul_(hyper.alpha).addcmul_(grads, grads, value=new)
    if hyper.centered:
        mean = state["grad_avg"].lerp_(grads, new)
        second = torch.addcmul(squares, mean, mean, value=-1, out=second).clamp_(min=0).sqrt_().add_(hyper.eps)
    else:
        second = torch.sqrt(squares, out=second).add_(hyper.eps)
    if hyper.momentum:
        params.add_(state["momentum_buffer"].mul_(hyper.momentum).addcdiv_(grads, second), alpha=-hyper.lr)
    else:
        params.addcdiv_(grads, second, value=-hyper.lr)


def _lion_(group: FlatGroup, hyper: Lion, _first: Tensor, second: Tensor) -> None:
    beta1, beta2 = hyper.betas
    params, grads, momentum = group.params, group.grads, group.state["exp_avg"]
    direction = torch.lerp(momentum, grads, 1 - beta1, out=second).sign_()
    params.add_(direction.add_(params, alpha=hyper.weight_decay), alpha=-hyper.lr)
    momentum.lerp_(grads, 1 - beta2)


Step = Callable[[FlatGroup, Any, Tensor, Tensor], None]
"""Steps a group in place, given two places of its length to work in; the first may hold its gradients already."""

STEPS: Mapping[str, Step] = MappingProxyType(
    {"sgd": _sgd_, "adam": _adam_, "adamw": _adamw_, "adagrad": _adagrad_, "rmsprop": _rmsprop_, "lion": _lion_}
)
"""The optimizers that step on a device, by their names in the catalogue."""

LONGEST: Mapping[str, float] = MappingProxyType(dict.fromkeys(("adam", "adamw", "rmsprop"), 1e18))
"""The 2-norm up to which these take gradients: torch keeps for good the infinity that a mean of squares may become."""
