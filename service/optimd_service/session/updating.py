"""One update of all groups of a session, and of the averages kept beside its weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import islice

import torch

from optimd_service.optim.averages import ema_, swa_
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.low_precision import new_scratch, update_compressed_
from optimd_service.optim.row_update import update_rows_
from optimd_service.optim.state_buffer import CompressedBuffer
from optimd_service.optim.state_dtype import buffers_of
from optimd_service.optim.tensorwise import flattened
from optimd_service.optim.update import Norms, Workplace, Wrote, update_, update_tensors_
from optimd_service.session.plan import AVERAGED, EMA, SCRATCH, SWA, Plan, numbers_of
from optimd_service.session.rows import Landed
from optimd_service.store.contract import Working

MOST_BUFFERS = 4  # of those that an optimizer keeps in few bytes


def update_groups_(
    working: Working,
    grads: torch.Tensor,
    plan: Plan,
    resolved: Mapping[str, Hyperparameters],
    place: Workplace,
    landed: Landed | None = None,
    wrote: Wrote | None = None,
) -> Norms:
    """Step every group, by the hyperparameters ``resolved`` of each.

    Args:
      grads: shape [landed.layout.trained.numel]; read only.
      landed: how they lie; None where all came whole.
      wrote: told of parts of the weights that have been stepped, as they are.
    """
    working.updates += 1
    lie = landed or Landed(plan.layout)
    return Norms.joined(
        [_update_group_(working, grads, plan, name, hyper, place, lie, wrote) for name, hyper in resolved.items()]
    )


def _update_group_(
    working: Working,
    grads: torch.Tensor,
    plan: Plan,
    name: str,
    hyper: Hyperparameters,
    place: Workplace,
    landed: Landed,
    wrote: Wrote | None,
) -> Norms:
    layout, optimizer = plan.layout, plan.settings.optimizer
    buffers = optimizer.state(hyper)
    fresh = any((name, buffer) not in working.started for buffer in buffers)
    numbers = working.numbers.setdefault(numbers_of(name), dict(optimizer.numbers)) if optimizer.numbers else {}
    params, cut = layout.cut(working.params, name), landed.layout.cut(grads, name)
    elementwise = plan.policy.state_dtype == "f32" and optimizer.shapes is None
    state = {buffer: layout.cut(working.state[buffer], name) for buffer in buffers} if elementwise else {}
    group = FlatGroup(params, cut, state, working.updates, fresh, numbers, scratch=working.state.get(SCRATCH))
    working.started.update([(name, buffer) for buffer in buffers])
    if name in landed.groups:
        return _update_some_rows_(working, grads, plan, name, group, hyper, place, landed)
    if optimizer.shapes is not None:
        return update_tensors_(optimizer, group, _tensors(working, grads, plan, name, group, landed), hyper, place)
    if elementwise:
        return update_(optimizer, group, hyper, place, wrote)
    kept = _kept(working, plan, name, buffers)
    plain = {buffer: flat for buffer, flat in kept.items() if isinstance(flat, torch.Tensor)}
    return update_compressed_(
        optimizer,
        group._replace(state=plain),
        hyper,
        {buffer: flat for buffer, flat in kept.items() if not isinstance(flat, torch.Tensor)},
        place,
        seed=plan.rounding_seed(name),
        scratch=_scratch.rows,
    )


def _update_some_rows_(
    working: Working,
    grads: torch.Tensor,
    plan: Plan,
    name: str,
    group: FlatGroup,
    hyper: Hyperparameters,
    place: Workplace,
    landed: Landed,
) -> Norms:
    """Step a group tensor by tensor, where rows of some of them came."""
    optimizer = plan.settings.optimizer
    if group.fresh and optimizer.begin_ is not None:
        # The other rows are begun here too: they will not be fresh when their turn comes.
        state = {buffer: plan.layout.cut(working.state[buffer], name) for buffer in optimizer.state(hyper)}
        optimizer.begin_(group._replace(state=state), hyper)
        group = group._replace(fresh=False)
    tensors = _tensors(working, grads, plan, name, group, landed)
    whole = [tensor for tensor in tensors if tensor.rows is None]
    norms = [update_rows_(optimizer, tensor, hyper, place) for tensor in tensors if tensor.rows is not None]
    if optimizer.shapes is not None:
        return Norms.joined([*norms, update_tensors_(optimizer, group, whole, hyper, place)])
    return Norms.joined([*norms, *(update_(optimizer, flattened(tensor), hyper, place) for tensor in whole)])


def _kept(
    working: Working, plan: Plan, name: str, buffers: Sequence[str]
) -> dict[str, CompressedBuffer | torch.Tensor]:
    """The state of one group as it is kept, in few bytes or as it is."""
    number = list(plan.layout.groups).index(name)
    dtype = plan.policy.state_dtype
    return {
        buffer: next(islice(buffers_of(buffer, plan.group_lengths, dtype, working.state), number, None))
        for buffer in buffers
    }


class _Scratch(threading.local):
    """Where a thread widens state; kept, since fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._rows = new_scratch(0)

    def rows(self) -> torch.Tensor:
        if not len(self._rows):
            self._rows = new_scratch(MOST_BUFFERS)
        return self._rows


_scratch = _Scratch()


def _tensors(
    working: Working, grads: torch.Tensor, plan: Plan, name: str, group: FlatGroup, landed: Landed
) -> Sequence[FlatGroup]:
    """The tensors of a group one by one, each with its own pieces of the state."""
    spans, landed_spans = plan.layout.spans, landed.layout.spans

    def one(tensor: str, shape: tuple[int, ...]) -> FlatGroup:
        params, own = working.params[slice(*spans[tensor])], grads[slice(*landed_spans[tensor])]
        state = {
            buffer: pieces.view(working.state[buffer], tensor)
            for buffer, pieces in plan.pieces.items()
            if tensor in pieces.spans
        }
        return group._replace(params=params, grads=own, state=state, shape=shape, rows=landed.rows(tensor))

    return [one(tensor.name, tensor.shape) for tensor in plan.layout.trained.tensors if tensor.group == name]


def average_(working: Working, plan: Plan, step: int, place: Workplace) -> None:
    """Let the averages see the weights of ``step``."""
    policy = plan.policy
    if policy.ema is None and policy.swa is None:
        return
    params = working.params[: plan.layout.trained.numel]
    numbers = working.numbers.setdefault(AVERAGED, {EMA: 0.0, SWA: 0.0})
    if policy.ema is not None and policy.ema.due(step):
        ema_(working.state[EMA], params, policy.ema, int(numbers[EMA]), place.each)
        numbers[EMA] += 1
    if policy.swa is not None and policy.swa.due(step):
        swa_(working.state[SWA], params, int(numbers[SWA]), place.each)
        numbers[SWA] += 1
