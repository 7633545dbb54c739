"""A rule's course of the learning rate, in the words of a session's ``schedule``."""

from __future__ import annotations

from typing import Any

from optimd_service.optim.advice.rule import Schedule

_DECAY = 0.2  # of all steps: from 10 to 20 % is as good as a cosine (Hägele et al. 2024)
_PATIENCE = 0.02  # of all steps
_SHORTEST_PATIENCE = 100  # a step's loss is that of one batch, and noisy
CONSTANT = {"name": "constant", "factor": 1.0, "total_iters": 1}


def course(schedule: Schedule, lr: float, total_steps: int | None) -> dict[str, Any]:
    """The ``schedule`` of a create body.

    Args:
      lr: the peak, in parameter units per step.
      total_steps: None when the end is not known; what would have to fall to it then stays constant.
    """
    warmup = _warmup(schedule, total_steps)
    if schedule.name == "reduce_on_plateau":
        patience = max(_SHORTEST_PATIENCE, int(_PATIENCE * (total_steps or 0)))
        return {"name": "reduce_on_plateau", "factor": 0.3, "patience": patience, **warmup}
    if schedule.name == "constant" or total_steps is None or total_steps < 2:
        return {**CONSTANT, **warmup}
    if schedule.name == "one_cycle":
        return {"name": "one_cycle", "max_lr": lr, "total_steps": total_steps}
    if schedule.name == "warmup_stable_decay":
        decay = max(1, int(_DECAY * total_steps))
        return {"name": "warmup_stable_decay", **warmup, "total_steps": total_steps, "decay_steps": decay}
    floor = {"eta_min": float(f"{lr * schedule.floor:.3g}")} if schedule.floor else {}
    return {"name": "cosine", **warmup, "total_steps": total_steps, **floor}


def _warmup(schedule: Schedule, total_steps: int | None) -> dict[str, int]:
    if not schedule.warmup:
        return {}
    steps = schedule.longest if total_steps is None else min(schedule.longest, int(schedule.warmup * total_steps))
    return {"warmup_steps": steps} if steps else {}
