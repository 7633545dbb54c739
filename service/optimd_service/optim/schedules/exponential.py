"""Exponential: lr shrinks by the same share at every update."""

from __future__ import annotations

from typing import Literal

from optimd_service.optim.schedules.base import Gamma, PlainSchedule, power


class ExponentialSchedule(PlainSchedule):
    """lr is multiplied by γ at every update; γ above 1 is a learning-rate range test.

    lr(t) = lr · γᵗ, at most 10¹⁸

    Source: torch.optim.lr_scheduler.ExponentialLR.
    """

    name: Literal["exponential"] = "exponential"
    gamma: Gamma

    def lr(self, base_lr: float, position: int) -> float:
        return base_lr * power(self.gamma, position)
