"""How a session's weights begin: torch.nn.init's initialisers, under its names, arguments and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator
from torch import Tensor

from optimd_service.errors import InvalidField

# So far from float32's largest number no draw, gain or difference of bounds reaches it.
LARGEST = 1e30

Real = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Nonlinearity = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]


class _Initialiser(BaseModel):
    """One of torch.nn.init's functions: ``name`` is the function's, the other fields are its arguments."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    fewest_dimensions: ClassVar[int] = 0
    draws: ClassVar[bool] = True


class Zeros(_Initialiser):
    name: Literal["zeros"] = "zeros"
    draws: ClassVar[bool] = False


class Constant(_Initialiser):
    name: Literal["constant"] = "constant"
    val: Real
    draws: ClassVar[bool] = False


class Normal(_Initialiser):
    name: Literal["normal"] = "normal"
    mean: Real = 0.0
    std: NotNegative = 1.0


class Uniform(_Initialiser):
    name: Literal["uniform"] = "uniform"
    a: Real = 0.0
    b: Real = 1.0

    @field_validator("b")
    @classmethod
    def _bounds_in_order(cls, b: float, others: ValidationInfo) -> float:
        if b < others.data.get("a", b):
            raise ValueError("b must not be less than a")
        return b


class TruncNormal(_Initialiser):
    name: Literal["trunc_normal"] = "trunc_normal"
    mean: Real = 0.0
    std: Positive = 1.0
    a: Real = -2.0
    b: Real = 2.0

    @field_validator("b")
    @classmethod
    def _bounds_are_hit(cls, b: float, others: ValidationInfo) -> float:
        """Refuse bounds that draws would miss so often that torch, which redraws until none does, hardly ends."""
        if not {"mean", "std", "a"} <= others.data.keys():
            return b
        mean, std, a = (others.data[name] for name in ("mean", "std", "a"))
        outside = max(a - mean, mean - b, 0)
        if b <= a or outside > 2 * std or (outside > 0 and b - a > 8 * std):
            raise ValueError("b must be above a, with mean between them, or (at most 8 std apart) within 2 std of them")
        return b


class XavierUniform(_Initialiser):
    name: Literal["xavier_uniform"] = "xavier_uniform"
    gain: NotNegative = 1.0
    fewest_dimensions: ClassVar[int] = 2


class XavierNormal(_Initialiser):
    name: Literal["xavier_normal"] = "xavier_normal"
    gain: NotNegative = 1.0
    fewest_dimensions: ClassVar[int] = 2


class _Kaiming(_Initialiser):
    a: Real = 0.0
    mode: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: Nonlinearity = "leaky_relu"
    fewest_dimensions: ClassVar[int] = 2


class KaimingUniform(_Kaiming):
    name: Literal["kaiming_uniform"] = "kaiming_uniform"


class KaimingNormal(_Kaiming):
    name: Literal["kaiming_normal"] = "kaiming_normal"


class Orthogonal(_Initialiser):
    name: Literal["orthogonal"] = "orthogonal"
    gain: Real = 1.0
    fewest_dimensions: ClassVar[int] = 2


Initialiser = Annotated[
    Zeros
    | Constant
    | Normal
    | Uniform
    | TruncNormal
    | XavierUniform
    | XavierNormal
    | KaimingUniform
    | KaimingNormal
    | Orthogonal,
    Field(discriminator="name"),
]
INITIALISERS = tuple(TypeAdapter(Initialiser).json_schema()["discriminator"]["mapping"])
"""Every initialiser's name."""


def check_initialiser(spec: Initialiser, shape: Sequence[int], *, where: str) -> None:
    """Refuse a shape that the initialiser cannot fill; check every tensor before the first is filled.

    Raises: InvalidField, naming ``where``'s ``name``.
    """
    if len(shape) < spec.fewest_dimensions:
        detail = f"{spec.name} needs at least {spec.fewest_dimensions} dimensions; the shape is {list(shape)}."
        raise InvalidField(detail, field=f"{where}.name")


def initialise_(tensor: Tensor, spec: Initialiser, generator: torch.Generator) -> None:
    """Fill a tensor in place, exactly as ``torch.nn.init`` would after ``torch.manual_seed``.

    Args:
      tensor: any shape, contiguous, float32 or float64; may be a view of a flat buffer. An empty one draws nothing.
      generator: one for the whole session, so that the order of tensors decides what each draws.

    Raises: InvalidField, before anything is written, if the shape is not one that the initialiser can fill.
    """
    check_initialiser(spec, tensor.shape, where="init")
    if tensor.numel():
        source = {"generator": generator} if spec.draws else {}
        getattr(torch.nn.init, f"{spec.name}_")(tensor, **spec.model_dump(exclude={"name"}), **source)
