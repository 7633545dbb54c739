"""Dynamic loss scaling: as large a factor on the loss as float16 gradients bear without overflowing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from optimd_service.optim.blocks import Each, multiply_
from optimd_service.optim.hyperparameters import LARGEST

_FLOAT32 = torch.finfo(torch.float32)


class LossScale(BaseModel):
    """How the scale of the loss follows the gradients; names and defaults of torch.amp.GradScaler."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    init_scale: Annotated[float, Field(ge=_FLOAT32.tiny, le=LARGEST, description="The first scale.")] = 2.0**16
    growth_factor: Annotated[float, Field(gt=1, le=LARGEST, description="The scale's factor when it grows.")] = 2.0
    backoff_factor: Annotated[
        float, Field(gt=0, lt=1, description="The scale's factor when gradients are not finite.")
    ] = 0.5
    growth_interval: Annotated[
        int, Field(ge=1, le=2**31 - 1, description="Steps in a row with finite gradients after which it grows.")
    ] = 2000


def begin(spec: LossScale) -> dict[str, float]:
    """The numbers before the first step: ``scale``, what the loss is multiplied by, and ``growth_tracker``, at 0."""
    return {"scale": float(np.float32(spec.init_scale)), "growth_tracker": 0.0}


def advance(spec: LossScale, numbers: Mapping[str, float], finite: bool) -> dict[str, float]:
    """The numbers after a step whose gradients were all finite, or were not.

    With s the scale and k the tracker:
        not finite:  s ← s · backoff_factor;  k ← 0
        finite:      k ← k + 1;  where k reaches growth_interval:  s ← s · growth_factor;  k ← 0
    s is a float32 number. It does not grow past the largest, as in torch, nor shrink below the smallest normal one:
    torch's may become 0, from which no growth leads back.

    Source: Micikevicius et al. 2018, arXiv:1710.03740; torch.amp.GradScaler.
    """
    scale, successes = numbers["scale"], numbers["growth_tracker"] + 1
    if not finite:
        return {"scale": float(np.float32(max(scale * spec.backoff_factor, _FLOAT32.tiny))), "growth_tracker": 0.0}
    if successes < spec.growth_interval:
        return {"scale": scale, "growth_tracker": successes}
    grown = scale * spec.growth_factor
    return {"scale": float(np.float32(grown)) if grown <= _FLOAT32.max else scale, "growth_tracker": 0.0}


def unscale_(grads: Tensor, scale: float, each: Each = map) -> None:
    """Divide gradients by the scale of their loss, in place; elements that are not finite stay so.

    Args:
      grads: shape [n], float32, float64 or bfloat16; written unless the scale is 1.
      scale: > 0, as it was when the gradients were taken.
      each: as ``map``, perhaps side by side.

    Cost: one read and one write. Multiplies by 1/scale, as torch does; a power of two loses no bit.
    """
    multiply_(grads, 1 / scale, each)
