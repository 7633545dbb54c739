"""Optimizers of the library pytorch_optimizer, for one tensor at a time and with their state in our buffers.

The library keeps state in its own objects. An adapted step builds its optimizer for one tensor, lends it our buffers,
lets it step, and copies back what it replaced. A buffer is named by its path in the library's state: ``GG_1`` is
``state["GG"][1]``. Numbers in that state are hyperparameters that the library noted down; they are handed to it anew
every step, so that changed hyperparameters take effect at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.kernel import Sums
from optimd_service.optim.tensorwise import stepped_

LIBRARY = "pytorch_optimizer"


def library() -> ModuleType:
    """The library, which a server may be without.

    Raises: InvalidField, saying what to install.
    """
    try:
        return import_module(LIBRARY)
    except ImportError:
        detail = "This optimizer is computed by pytorch_optimizer, which this server lacks: pip install 'optimd[zoo]'."
        raise InvalidField(detail, field="optimizer.name") from None


def adapted_step_(
    group: FlatGroup, kind: str, arguments: Mapping[str, Any], arrange: Callable[[Mapping[str, Tensor]], dict[str, Any]]
) -> Sums:
    """Apply one step of a library's optimizer to one tensor, in place.

    Args:
      group: its state may hold anything where ``fresh``: the library then begins, and what it made is copied here.
      kind: name of the class.   arguments: of its constructor.
      arrange: buffers by name → what the library's optimizer keeps for a tensor that has been stepped before.

    Raises: InvalidField without the library; KeyError for a buffer that the library made and ``group`` lacks;
        torch.linalg.LinAlgError where second moments leave the dtype's range, as of gradients beyond 1e19 in float32:
        this tensor's state is then half written.
    Cost: beside the step itself a copy of weights and gradients, and of every buffer that the library replaced.
    """
    optimizer_of = getattr(library(), kind)

    def update_(params: Tensor, grads: Tensor) -> None:
        params.grad = grads.clone()  # the library's steps write to gradients
        optimizer = optimizer_of([params], **arguments)
        optimizer.param_groups[0]["step"] = group.step - 1
        if not group.fresh:
            optimizer.state[params].update(arrange(group.state))
        optimizer.step()
        for name, value in _buffers(optimizer.state[params]):
            if value is not group.state[name]:
                group.state[name].copy_(value)

    return stepped_(group, update_)


def _buffers(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        parts = {f"{name}_{i}": part for i, part in enumerate(value)} if isinstance(value, list) else {name: value}
        yield from ((path, part) for path, part in parts.items() if isinstance(part, Tensor))
