"""Reduce on plateau: lr shrinks when the loss has stopped improving."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Annotated, Any, Literal

from pydantic import Field

from optimd_service.optim.schedules.base import Count, Memory, Rate, Values, WarmedSchedule


class ReduceOnPlateauSchedule(WarmedSchedule):
    """lr is multiplied by ``factor`` after more than ``patience`` updates in a row whose loss is no new best.

    A loss is a new best below best·(1 − threshold) in mode min, above best·(1 + threshold) in mode max; with
    threshold_mode abs, below best − threshold or above best + threshold. After a reduction, ``cooldown`` updates pass
    before bad ones count again. A reduction that would change lr by no more than ``eps`` is not made:
        lr ← max(lr · factor, min_lr) if that is less than lr − eps

    The loss is the one pushed with each step. An update without one leaves everything as it is, and so does every
    update of the warm-up. NaN and infinity are no new best: they count as bad.

    Memory: best, num_bad_epochs, cooldown_counter and num_reductions, as numbers; before the first loss none of them;
    with a warm-up, also how much of it is done, warmup_count.
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau. What is remembered is how many reductions there were, since
    min_lr and eps let the lr of one group follow them further than that of another.
    """

    name: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    mode: Literal["min", "max"] = Field("min", description="Whether a lower or a higher loss is better.")
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="What a reduction multiplies lr by.")
    patience: Count = Field(10, description="Bad updates in a row that are let pass.")
    threshold: Rate = Field(1e-4, description="How much better a new best must be.")
    threshold_mode: Literal["rel", "abs"] = Field("rel", description="Whether threshold is a share of the best or not.")
    cooldown: Count = Field(0, description="Updates after a reduction in which bad ones do not count.")
    min_lr: Rate = Field(0.0, description="No reduction goes below this lr.")
    eps: Rate = Field(1e-8, description="A reduction by no more than this is not made.")

    def behind_warmup(self, base: Values, _position: int, memory: Memory) -> dict[str, Any]:
        return {"lr": self._reduced(base["lr"], int(memory.get("num_reductions", 0)))}

    def advance(self, memory: Memory, loss: float | None, /) -> dict[str, float]:
        warmed = memory.get("warmup_count", 0.0)
        if warmed < self.warmup_steps:
            return {**memory, "warmup_count": warmed + 1}
        return dict(memory) if loss is None else {**memory, **self._judged(memory, loss)}

    def _judged(self, memory: Memory, loss: float) -> dict[str, float]:
        """What of the memory changes with a loss."""
        better = self._is_better(loss, memory.get("best"))
        bad = 0.0 if better else memory.get("num_bad_epochs", 0.0) + 1
        cooldown, reductions = memory.get("cooldown_counter", 0.0), memory.get("num_reductions", 0.0)
        if cooldown > 0:
            cooldown, bad = cooldown - 1, 0.0
        if bad > self.patience:
            cooldown, bad, reductions = float(self.cooldown), 0.0, reductions + 1
        judged = {"num_bad_epochs": bad, "cooldown_counter": cooldown, "num_reductions": reductions}
        return judged | {"best": float(loss)} if better else judged

    def _is_better(self, loss: float, best: float | None) -> bool:
        if best is None or not math.isfinite(loss):
            return math.isfinite(loss)
        downwards = self.mode == "min"
        margin = -self.threshold if downwards else self.threshold
        bar = best * (1 + margin) if self.threshold_mode == "rel" else best + margin
        return loss < bar if downwards else loss > bar

    def _reduced(self, base_lr: float, reductions: int) -> float:
        """The lr after so many reductions. They get smaller: when ``eps`` stops one, it stops all."""

        def after(made: int) -> float:
            return max(base_lr * self.factor**made, self.min_lr) if made else base_lr

        made = bisect_left(range(reductions), True, key=lambda i: after(i) - after(i + 1) <= self.eps)
        return after(made)
