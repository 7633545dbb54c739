"""The optimizer's state buffers as flat tensors in the dtype of the arithmetic, however they are kept."""

from __future__ import annotations

import torch

from optimd_service.optim.low_precision import narrowed_, widened
from optimd_service.optim.state_dtype import buffers_of
from optimd_service.session.plan import Plan
from optimd_service.store.contract import Working


def read_buffer(working: Working, plan: Plan, buffer: str) -> torch.Tensor:
    """A state buffer, shape [its pieces together]: itself where it is kept as it is, else a widened copy."""
    if plan.policy.state_dtype == "f32":
        return working.state[buffer]
    groups = buffers_of(buffer, plan.group_lengths, plan.policy.state_dtype, working.state)
    parts = [
        kept if isinstance(kept, torch.Tensor) else widened(kept, length)
        for kept, length in zip(groups, plan.group_lengths, strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def write_buffer_(working: Working, plan: Plan, buffer: str, flat: torch.Tensor) -> None:
    """Keep a state buffer whose elements are now those of ``flat``, shape as ``read_buffer`` gives it."""
    if plan.policy.state_dtype == "f32":
        if working.state[buffer] is not flat:
            working.state[buffer].copy_(flat)
        return
    groups = buffers_of(buffer, plan.group_lengths, plan.policy.state_dtype, working.state)
    parts = torch.split(flat, plan.group_lengths)
    for group, kept, part in zip(plan.layout.groups, groups, parts, strict=True):
        if isinstance(kept, torch.Tensor):
            kept.copy_(part)
        else:
            narrowed_(kept, part, plan.rounding_seed(group), buffer)
