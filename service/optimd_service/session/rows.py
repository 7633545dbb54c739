"""A push of rows: where it lies in the gradient buffer, whether it may be stepped with, and the update it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from optimd_service.errors import InvalidField
from optimd_service.optim.hyperparameters import Hyperparameters
from optimd_service.optim.row_update import require_takes_rows
from optimd_service.optim.sparse_adam import RowGradients, coalesce_rows
from optimd_service.session.plan import Plan
from optimd_service.types import Layout
from optimd_service.wire.rows import Rows


@dataclass(frozen=True)
class Landed:
    """How the gradients of one push lie in the session's buffer.

    A tensor of which rows came has those rows there and no others, so norms, clipping and centralisation go over what
    came, as over any gradients: rows of zeros would change none of them. The update alone looks at row numbers.

    Attributes:
      whole: the session's layout.
      grads: tensor name → its rows, each once, of the tensors of which rows came.
    """

    whole: Layout
    grads: Mapping[str, RowGradients] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, given: Mapping[str, Rows]) -> Landed:
        """Add up the rows that came twice, in the dtype of the arithmetic."""
        if not given:
            return cls(layout)
        return cls(
            layout,
            {
                name: coalesce_rows(rows, values.to(layout.dtype), layout.shapes[name][0])
                for name, (rows, values) in given.items()
            },
        )

    @cached_property
    def layout(self) -> Layout:
        """Of what came: no longer than the session's, since no tensor has more rows than it has."""
        if not self.grads:
            return self.whole
        tensors = (
            replace(tensor, shape=tuple(self.grads[tensor.name].values.shape)) if tensor.name in self.grads else tensor
            for tensor in self.whole.tensors
        )
        return Layout(tuple(tensors), self.whole.dtype)

    def land_(self, flat: torch.Tensor) -> None:
        """Write the rows' values where they belong in ``flat``, shape [at least layout.trained.numel]."""
        for name, (_, values) in self.grads.items():
            start, stop = self.layout.spans[name]
            flat[start:stop].copy_(values.reshape(-1))

    def beside(self, params: torch.Tensor) -> torch.Tensor:
        """The weights that the gradients belong to, shape [layout.trained.numel]: a copy where rows came.

        Args:
          params: shape [whole.numel].
        """
        layout = self.layout.trained
        if not self.grads:
            return params[: layout.numel]
        return torch.cat([self._of(tensor.name, params) for tensor in layout.tensors])

    def _of(self, tensor: str, params: torch.Tensor) -> torch.Tensor:
        start, stop = self.whole.spans[tensor]
        flat = params[start:stop]
        if tensor not in self.grads:
            return flat
        return flat.view(self.whole.shapes[tensor])[self.grads[tensor].rows].reshape(-1)

    def rows(self, tensor: str) -> torch.Tensor | None:
        """The rows of a tensor that came; None for one that came whole."""
        return self.grads[tensor].rows if tensor in self.grads else None

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups of the tensors of which rows came."""
        if not self.grads:
            return frozenset()
        return frozenset(tensor.group for tensor in self.whole.trained.tensors if tensor.name in self.grads)


def require_rows(plan: Plan, resolved: Mapping[str, Hyperparameters], tensors: Iterable[str]) -> None:
    """Refuse rows that the step cannot be confined to, before anything is changed.

    Args:
      resolved: group name → its hyperparameters in the step that the push is for.
      tensors: of which rows came.

    Raises: InvalidField, naming the first tensor.
    """
    groups = {tensor.name: tensor.group for tensor in plan.layout.trained.tensors}
    optimizer, policy = plan.settings.optimizer, plan.policy
    for name in tensors:
        hyper = resolved[groups[name]]
        require_takes_rows(optimizer, hyper, name)
        if policy.on_device:
            raise InvalidField(
                f"Rows of tensor {name[:80]!r} came, and on {policy.device} there are no steps of some rows: push the "
                "tensor whole, with zeros in the other rows, or create the session with storage.device cpu.",
                field=name,
            )
        if policy.accumulate is not None and policy.accumulate.steps > 1:
            raise InvalidField(
                f"Rows of tensor {name[:80]!r} came, and this session adds up several pushes to one step: push the "
                "tensor whole, with zeros in the other rows, or create the session without `accumulate`.",
                field=name,
            )
        if policy.state_dtype != "f32" and optimizer.state(hyper):
            raise InvalidField(
                f"Rows of tensor {name[:80]!r} came, and this session keeps its state in blocks of fewer bytes: push "
                "the tensor whole, with zeros in the other rows, or create the session with `state_dtype` f32.",
                field=name,
            )
