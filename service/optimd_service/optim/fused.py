"""torch's fused CPU kernels: one pass over memory for a whole update.

torch.optim reaches them only through a loop over separate parameters, which costs more than the arithmetic when
parameters are many and small; a flat group is one call. The names are private to torch, so they are used here and
nowhere else, and pyproject.toml pins the release that they were tested with.
"""

from __future__ import annotations

import threading
from typing import Literal

import torch
from torch import Tensor


class _Counter(threading.local):
    """The step number as the kernels want it; one a thread, because making a tensor costs as much as a small update."""

    def __init__(self) -> None:
        self.step = torch.zeros(())


_counter = _Counter()
_ADAM = {"l2": torch._fused_adam_, "decoupled": torch._fused_adamw_}


def fused_adam_(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    *,
    decay: Literal["l2", "decoupled"],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam or, with decoupled decay, AdamW; arguments as in ``adam.adam_``."""
    _ADAM[decay](
        [params],
        [grads],
        [exp_avg],
        [exp_avg_sq],
        [] if max_exp_avg_sq is None else [max_exp_avg_sq],
        [_counter.step.fill_(step)],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=max_exp_avg_sq is not None,
        maximize=False,
    )


def fused_sgd_(
    params: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor | None,
    *,
    fresh: bool,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """SGD; arguments as in ``sgd.sgd_``."""
    torch._fused_sgd_(
        [params],
        [grads],
        [] if momentum_buffer is None else [momentum_buffer],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=nesterov,
        maximize=False,
        is_first_step=fresh,
    )
