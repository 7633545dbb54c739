"""From gradients as they were pushed to gradients as the optimizer is given them, in place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from optimd_service.optim import loss_scale
from optimd_service.optim.accumulation import accumulate_
from optimd_service.optim.centralisation import centralise_
from optimd_service.optim.clipping import ClipAdaptive, clip_
from optimd_service.optim.judge import judge
from optimd_service.optim.update import Workplace
from optimd_service.session.plan import ACCUMULATE, ACCUMULATED, LOSS_SCALE
from optimd_service.session.policy import Policy
from optimd_service.session.rows import Landed
from optimd_service.store.contract import Working


def scale_of(policy: Policy, numbers: Mapping[str, Mapping[str, float]]) -> float | None:
    """What the gradients of the next push are expected to be scaled by; None without loss scaling."""
    if policy.loss_scale is None:
        return None
    return (numbers.get(LOSS_SCALE) or loss_scale.begin(policy.loss_scale))["scale"]


def rescale_(policy: Policy, working: Working, *, finite: bool) -> None:
    """Let the loss scale adapt to what became of a push."""
    if policy.loss_scale is not None:
        numbers = working.numbers.get(LOSS_SCALE) or loss_scale.begin(policy.loss_scale)
        working.numbers[LOSS_SCALE] = loss_scale.advance(policy.loss_scale, numbers, finite)


def is_within_range(
    grads: torch.Tensor, norm: float, policy: Policy, numbers: Mapping[str, Mapping[str, float]], longest: float
) -> bool:
    """Whether gradients can be stepped with, also when they are un-scaled and added to those of the pushes before.

    Args:
      grads: shape [trained], as pushed; only their dtype is looked at.   norm: their 2-norm.
      longest: the 2-norm up to which the optimizer takes them.
    """
    scale = scale_of(policy, numbers)
    if scale is None and policy.accumulate is None:
        return norm < math.inf and norm <= longest
    # No element of a sum is larger than the sum of the norms.
    bound = norm / (scale or 1) + numbers.get(ACCUMULATE, {}).get("norm", 0.0)
    return norm < math.inf and bound < torch.finfo(grads.dtype).max and bound <= longest


def gather_(
    grads: torch.Tensor, norm: float, policy: Policy, working: Working, place: Workplace
) -> tuple[torch.Tensor, float] | None:
    """Un-scale a push, and add it to those before it.

    Args:
      grads: shape [trained]; finite.   norm: their 2-norm as they were pushed.

    Returns: the gradients that the step is to be taken with, and their 2-norm; None while more pushes must come.
    """
    scale = scale_of(policy, working.numbers)
    if scale is not None and scale != 1:
        loss_scale.unscale_(grads, scale, place.each)
        norm /= scale
    if policy.accumulate is None or policy.accumulate.steps == 1:
        return grads, norm
    before = working.numbers.get(ACCUMULATE, {"held": 0.0, "norm": 0.0})
    push = int(before["held"]) + 1
    total, divisor = working.state[ACCUMULATED], policy.accumulate.divisor(push)
    accumulate_(total, grads, first=push == 1, divisor=divisor, each=place.each)
    complete = push == policy.accumulate.steps
    if not complete:
        working.numbers[ACCUMULATE] = {"held": push, "norm": before["norm"] + norm}
        return None
    del working.numbers[ACCUMULATE]
    return total, judge(total, place.each)


def temper_(
    grads: torch.Tensor, params: torch.Tensor, norm: float, policy: Policy, landed: Landed, place: Workplace
) -> tuple[float, float]:
    """Centralise, clip and turn round, as the session's policy says.

    Args:
      grads: shape [landed.layout.trained.numel]; written.   params: shape [numel]; read only.   norm: of ``grads``.

    Returns: the receipt's ``grad_norm``, before clipping, and its ``clip_scale``.
    """
    layout = landed.layout.trained
    if policy.centralize:
        centralise_(grads, layout, place.each)
        norm = judge(grads, place.each)
    scale = 1.0
    if policy.clip is not None:
        beside = landed.beside(params) if isinstance(policy.clip, ClipAdaptive) else params[: len(grads)]
        scale = clip_(grads, beside, layout, policy.clip, norm, place.each)
    if policy.maximize:
        grads.neg_()
    return norm, scale
