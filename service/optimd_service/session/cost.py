"""What a session would cost, before there is one."""

from __future__ import annotations

from typing import Any

from optimd_service.session.blueprint import Blueprint


def cost(blueprint: Blueprint) -> dict[str, Any]:
    """Bytes that the session of this blueprint would hold, by what they are for."""
    plan = blueprint.plan
    layout, state = plan.layout, {name: size.nbytes for name, size in plan.buffers.items()}
    weights, grads = layout.numel * layout.dtype.itemsize, plan.grads.nbytes
    return {
        "optimizer": plan.settings.optimizer.name,
        "parameters": layout.numel,
        "trained_parameters": layout.trained.numel,
        "weights_bytes": weights,
        "grads_bytes": grads,
        "state_bytes": sum(state.values()),
        "state": state,
        "bytes": weights + grads + sum(state.values()),
        "state_bytes_per_parameter": sum(state.values()) / max(1, layout.trained.numel),
    }
