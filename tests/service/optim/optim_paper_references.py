"""AdEMAMix, schedule-free AdamW and Prodigy, written tensor by tensor from their papers and their authors' code.

And those classes of torch.optim whose scalars are not as exact as ours, made so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def scalars_in_float64() -> Iterator[None]:
    """torch.optim keeps scalars such as ``mu_product`` in the default dtype; ours are Python's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class NAdam(torch.optim.NAdam):
    def step(self) -> None:  # type: ignore[override]
        with scalars_in_float64():
            super().step()


class ASGD(torch.optim.ASGD):
    def step(self) -> None:  # type: ignore[override]
        with scalars_in_float64():
            super().step()


class AdEMAMix(torch.optim.Optimizer):
    """Algorithm 1 of Pagliardini et al. 2024, with its schedules of α and β₃."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999, 0.9999), eps: float = 1e-8,
        weight_decay: float = 0.0, alpha: float = 5.0, alpha_warmup: int | None = None, beta3_warmup: int | None = None,
    ):  # fmt: skip
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "alpha": alpha}
        super().__init__(params, {**hyper, "alpha_warmup": alpha_warmup, "beta3_warmup": beta3_warmup})
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.t += 1
        for group in self.param_groups:
            (b1, b2, _), lr, warmup = group["betas"], group["lr"], group["alpha_warmup"]
            b3, alpha = self.beta3(group), min(self.t * group["alpha"] / (warmup or 1), group["alpha"])
            for p in group["params"]:
                m, slow, v = (
                    self.state[p].setdefault(name, torch.zeros_like(p))
                    for name in ("exp_avg", "exp_avg_slow", "exp_avg_sq")
                )
                m += (1 - b1) * (p.grad - m)
                slow += (1 - b3) * (p.grad - slow)
                v.mul_(b2).add_((1 - b2) * p.grad**2)
                ratio = (m / (1 - b1**self.t) + alpha * slow) / ((v / (1 - b2**self.t)).sqrt() + group["eps"])
                p.sub_(lr * (ratio + group["weight_decay"] * p))

    def beta3(self, group: dict[str, Any]) -> float:
        (b1, _, b3), warmup = group["betas"], group["beta3_warmup"]
        if warmup is None:
            return float(b3)
        (start, end), way = (math.log(b1), math.log(b3)), self.t / warmup
        return min(math.exp(start * end / ((1 - way) * end + way * start)), b3)


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Algorithm 1 of Defazio et al. 2024, with y and z in place of x and z."""

    def __init__(
        self, params: Any, lr: float = 2.5e-3, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
    ):  # fmt: skip
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(params, {**hyper, "r": r, "weight_lr_power": weight_lr_power})
        self.t, self.weight_sum, self.lr_max = 0, 0.0, 0.0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.t += 1
        for group in self.param_groups:
            (b1, b2), warmup = group["betas"], group["warmup_steps"]
            lr = group["lr"] * (self.t / warmup if self.t < warmup else 1.0)
            self.lr_max = max(self.lr_max, lr)
            weight = self.t ** group["r"] * self.lr_max ** group["weight_lr_power"]
            self.weight_sum += weight
            c = weight / self.weight_sum if self.weight_sum else 0.0
            for y in group["params"]:
                z = self.state[y].setdefault("z", y.clone())
                v = self.state[y].setdefault("exp_avg_sq", torch.zeros_like(y))
                v.mul_(b2).addcmul_(y.grad, y.grad, value=1 - b2)
                u = y.grad / ((v / (1 - b2**self.t)).sqrt() + group["eps"]) + group["weight_decay"] * y
                y.lerp_(z, c).add_(u, alpha=lr * (b1 * (1 - c) - 1))
                z.sub_(u, alpha=lr)


class Prodigy(torch.optim.Optimizer):
    """Algorithm 4 of Mishchenko & Defazio 2023 with the options of its authors' code; sums in float64."""

    def __init__(
        self, params: Any, lr: float = 1.0, betas: Sequence[float] = (0.9, 0.999), beta3: float | None = None,
        eps: float = 1e-8, weight_decay: float = 0.0, use_bias_correction: bool = False,
        safeguard_warmup: bool = False, d0: float = 1e-6, d_coef: float = 1.0, growth_rate: float | None = None,
    ):  # fmt: skip
        hyper = {"lr": lr, "betas": betas, "beta3": beta3, "eps": eps, "weight_decay": weight_decay}
        flags = {"use_bias_correction": use_bias_correction, "safeguard_warmup": safeguard_warmup}
        super().__init__(params, {**hyper, **flags, "d0": d0, "d_coef": d_coef, "growth_rate": growth_rate})
        self.t, self.d, self.d_max, self.d_numerator = 0, d0, d0, 0.0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.t += 1
        (group,) = self.param_groups
        (b1, b2), d, d0 = group["betas"], self.d, group["d0"]
        b3 = math.sqrt(b2) if group["beta3"] is None else group["beta3"]
        correction = math.sqrt(1 - b2**self.t) / (1 - b1**self.t) if group["use_bias_correction"] else 1.0
        d_lr = d * group["lr"] * correction
        weight = d / d0 * (d if group["safeguard_warmup"] else d_lr)
        along = sum(self._moments(p, b1, b2, b3, d, weight) for p in group["params"])
        length = sum(self.state[p]["s"].double().abs().sum().item() for p in group["params"])
        if not length:
            return
        self.d_numerator = b3 * self.d_numerator + d / d0 * d_lr * along
        self.d = self._estimate(group["d_coef"] * self.d_numerator / length, d0, group["growth_rate"] or math.inf)
        for p in group["params"]:
            root = self.state[p]["exp_avg_sq"].sqrt() + self.d * group["eps"]
            p.add_(p, alpha=-group["weight_decay"] * d_lr).addcdiv_(self.state[p]["exp_avg"], root, value=-d_lr)

    def _moments(self, p: Tensor, b1: float, b2: float, b3: float, d: float, weight: float) -> float:
        state, g = self.state[p], p.grad
        assert g is not None
        if not state:
            state.update(p0=p.clone(), **{name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq", "s")})
        along = (g.double() * (state["p0"] - p).double()).sum().item()
        state["exp_avg"].mul_(b1).add_(g, alpha=d * (1 - b1))
        state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=d * d * (1 - b2))
        state["s"].mul_(b3).add_(g, alpha=weight)
        return along

    def _estimate(self, estimate: float, d0: float, growth_rate: float) -> float:
        d = max(self.d, estimate) if self.d == d0 else self.d
        self.d_max = max(self.d_max, estimate)
        return min(self.d_max, d * growth_rate)
