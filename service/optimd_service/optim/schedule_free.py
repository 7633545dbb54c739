"""What the schedule-free optimizers share: three sequences of weights, and how they are averaged.

y, where gradients are taken, is the session's weights; z, a buffer, takes the plain steps; x, the weighted mean of all
z so far, is what is worth evaluating. Since y = (1−β)z + βx, x is not stored.

Source: Defazio et al. 2024, arXiv:2405.15682.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.hyperparameters import LARGEST, Steps
from optimd_service.optim.kernel import element, fma, mean

NUMBERS: Mapping[str, float] = MappingProxyType({"weight_sum": 0.0, "lr_max": 0.0})

# At 0, y would be z, and x could not be told from them; far below this bound, not in float32.
Interpolation = Annotated[float, Field(ge=1e-3, lt=1)]
WarmupSteps = Annotated[Steps, Field(description="Steps over which lr grows linearly from 0.")]
# Powers up to 10 of any rate and of any step number are finite in float64.
StepPower = Annotated[float, Field(ge=0, le=10, description="Step t has weight tʳ in the mean x.")]
RatePower = Annotated[
    float, Field(ge=0, le=10, description="A step's weight in the mean x is also the largest lr so far to this power.")
]


class ScheduleFree(Protocol):
    """What of the hyperparameters decides how z is averaged."""

    @property
    def lr(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def r(self) -> float: ...
    @property
    def weight_lr_power(self) -> float: ...


def rate(hyper: ScheduleFree, step: int) -> float:
    """The learning rate at this step of the warm-up."""
    return hyper.lr * min(1.0, step / max(1, hyper.warmup_steps))


def advance(hyper: ScheduleFree, step: int, numbers: Numbers) -> Numbers:
    """``lr_max``, the largest lr so far, and ``weight_sum``, the weights in x of all steps, this one included."""
    # An imported one may be of any size.
    lr_max = min(max(rate(hyper, step), numbers["lr_max"]), LARGEST)
    return {"lr_max": lr_max, "weight_sum": numbers["weight_sum"] + _weight(hyper, step, lr_max)}


def newest_share(hyper: ScheduleFree, step: int, numbers: Numbers) -> float:
    """c: the share of this step's z in x; 0 while no step has had any weight."""
    total = numbers["weight_sum"]
    return _weight(hyper, step, numbers["lr_max"]) / total if total else 0.0


def _weight(hyper: ScheduleFree, step: int, lr_max: float) -> float:
    return float(step**hyper.r * lr_max**hyper.weight_lr_power)


def begin_(part: FlatGroup, _hyper: object) -> None:
    """Let z begin as the weights."""
    part.state["z"].copy_(part.params)


def evaluation_weights(y: Tensor, z: Tensor, beta: float) -> Tensor:
    """The weights to evaluate, x = (y − (1−β)z)/β, as a new tensor.

    Args:
      y: the session's weights.   z: its buffer of that name, same shape and dtype.
      beta: what y was interpolated with, in (0, 1): ``momentum``, or the first of ``betas``.
    """
    return y.lerp(z, 1 - 1 / beta)


@element
def moved_y(y: Any, z: Any, step: Any, share: Any, rate: Any) -> Any:
    """The next y, after z has stepped and x has taken it in; ``rate`` is lr·(β(1−c) − 1)."""
    return fma(rate, step, mean(y, z, share))
