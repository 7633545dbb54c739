"""Every optimizer, in one table. A new one is one file beside this and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import Tensor

from optimd_service.errors import InvalidField
from optimd_service.optim import adam, adamw, lion, rmsprop, sgd
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.hyperparameters import LONGEST_NAME_SHOWN, Hyperparameters

H = TypeVar("H", bound=Hyperparameters)
FLOAT32_BYTES = 4
WORK_ROWS = 2


@dataclass(frozen=True)
class Optimizer(Generic[H]):
    """One row of the catalogue.

    Attributes:
      name: as in a session's ``optimizer.name``.   summary: one sentence.
      hyperparameters: their model.
      state: names, as in torch.optim, of the buffers that a set of hyperparameters needs.
      step_: updates a flat group in place, given its hyperparameters and WORK_ROWS tensors of its length to work in.
      source: the paper, and whose defaults these are.
      optional_state: buffers that may be there although the hyperparameters need them no more, or not yet.
    """

    name: str
    summary: str
    hyperparameters: type[H]
    state: Callable[[H], tuple[str, ...]]
    step_: Callable[[FlatGroup, H, Sequence[Tensor]], None]
    source: str
    optional_state: tuple[str, ...] = ()

    def parse(self, values: Mapping[str, Any], *, where: str) -> H:
        """Read hyperparameters, as ``Hyperparameters.parse`` does."""
        return self.hyperparameters.parse(values, optimizer=self.name, where=where)


_ROWS: tuple[Optimizer[Any], ...] = (
    Optimizer(
        "sgd",
        "Steps against the gradient; with momentum, Nesterov's if wanted. No state without momentum.",
        sgd.SGD,
        sgd.state,
        sgd.step_,
        "Sutskever et al. 2013; defaults of torch.optim.SGD",
        optional_state=("momentum_buffer",),
    ),
    Optimizer(
        "rmsprop",
        "Divides the gradient by a running root mean square of itself.",
        rmsprop.RMSprop,
        rmsprop.state,
        rmsprop.step_,
        "Hinton 2012, lecture 6e; defaults of torch.optim.RMSprop",
        optional_state=("momentum_buffer",),
    ),
    Optimizer(
        "adam",
        "Sizes every parameter's step by running means of its gradient and of the square.",
        adam.Adam,
        adam.state,
        adam.step_,
        "Kingma & Ba 2015, arXiv:1412.6980; defaults of torch.optim.Adam",
    ),
    Optimizer(
        "adamw",
        "Adam whose weight decay leaves the moments alone; the usual first choice.",
        adamw.AdamW,
        adamw.state,
        adamw.step_,
        "Loshchilov & Hutter 2019, arXiv:1711.05101; defaults of torch.optim.AdamW",
    ),
    Optimizer(
        "lion",
        "Moves every parameter by lr in the sign of its momentum; half of Adam's state.",
        lion.Lion,
        lion.state,
        lion.step_,
        "Chen et al. 2023, arXiv:2302.06675; the paper's defaults",
    ),
)

OPTIMIZERS: Mapping[str, Optimizer[Any]] = MappingProxyType({row.name: row for row in _ROWS})


def find(name: str) -> Optimizer[Any]:
    """The row that a session's ``optimizer.name`` names.

    Raises: InvalidField, listing the names there are.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        detail = f"There is no optimizer '{name[:LONGEST_NAME_SHOWN]}'; there are {known}."
        raise InvalidField(detail, field="optimizer.name")
    return OPTIMIZERS[name]


def describe(optimizer: Optimizer[Any]) -> dict[str, Any]:
    """The row as ``GET /v1/optimizers`` gives it; state and its bytes are with the default hyperparameters."""
    defaults = optimizer.hyperparameters()
    state = optimizer.state(defaults)
    return {
        "name": optimizer.name,
        "summary": optimizer.summary,
        "hyperparameters": optimizer.hyperparameters.model_json_schema(),
        "defaults": defaults.model_dump(mode="json"),
        "state": list(state),
        "bytes_per_parameter": FLOAT32_BYTES * len(state),
        "source": optimizer.source,
    }
