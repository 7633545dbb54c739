"""What the catalogue knows of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.kernel import Sums

H = TypeVar("H", bound=Hyperparameters)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Optimizer(Generic[H]):
    """One row of the catalogue.

    Attributes:
      name: as in a session's ``optimizer.name``.   summary: one sentence.
      hyperparameters: their model.
      state: names, as in torch.optim, of the buffers that a set of hyperparameters needs.
      step_: updates a part of a group in place, given the group's hyperparameters, and sums the squares for its norms.
      source: the paper, and whose defaults these are.
      optional_state: buffers that may be there although the hyperparameters need them no more, or not yet.
      begin_: fills the buffers of a part that do not begin at zero, right before its first update.
      numbers: what the optimizer remembers of a whole group beside its buffers, as it is before the first update.
      advance: the numbers of the next update, from hyperparameters, number of the update (≥ 1) and the numbers so far.
      survey_: a first pass over all parts, before any ``step_``: updates state of a part in place and returns sums over
        it, in float64. For an element-wise optimizer whose step depends on its whole group; comes with ``settle``.
      settle: the numbers that ``step_`` reads, from hyperparameters, number of the update, the numbers so far, and the
        sums over the whole group of what ``survey_`` returned.
      evaluate_: makes a copy of a group's weights those to evaluate, given its state; None: they are the weights.
      shapes: where ``step_`` takes one tensor after the other: the shapes of its state, from hyperparameters and the
        tensor's shape. None for an element-wise optimizer, whose state has the shape of the weights.
      own_scale: buffers that mean something else than other optimizers' of the same name: LARS's momentum has lr in it,
        SOAP's squares are in another basis. They go over to no other optimizer.
      longest: gradients of a larger 2-norm are treated like those that are not finite: matrices of their products could
        not be decomposed, half-way through an update.
      check: refuses, when a session is created, what the optimizer cannot step, from hyperparameters and tensor name →
        shape; raises InvalidField. None: it takes every tensor.
      takes_rows: whether with these hyperparameters a step can be confined to the rows of a table that have a gradient:
        where ``step_`` looks at tensors it is given ``rows`` then; an element-wise one is given nothing but those rows,
        and must leave parameters and state as they are where the gradient is 0. None: it never can.
    """

    name: str
    summary: str
    hyperparameters: type[H]
    state: Callable[[H], tuple[str, ...]]
    step_: Callable[[FlatGroup, H], Sums]
    source: str
    optional_state: tuple[str, ...] = ()
    begin_: Callable[[FlatGroup, H], None] | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    advance: Callable[[H, int, Numbers], Numbers] | None = None
    survey_: Callable[[FlatGroup, H], tuple[float, ...]] | None = None
    settle: Callable[[H, int, Numbers, tuple[float, ...]], Numbers] | None = None
    evaluate_: Callable[[Tensor, Mapping[str, Tensor], H], None] | None = None
    shapes: Callable[[H, Shape], Mapping[str, Shape]] | None = None
    own_scale: frozenset[str] = frozenset()
    longest: float = math.inf
    check: Callable[[H, Mapping[str, Shape]], None] | None = None
    takes_rows: Callable[[H], bool] | None = None

    def parse(self, values: Mapping[str, Any], *, where: str) -> H:
        """Read hyperparameters, as ``Hyperparameters.parse`` does."""
        return self.hyperparameters.parse(values, optimizer=self.name, where=where)
