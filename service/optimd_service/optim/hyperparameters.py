"""What every optimizer's hyperparameters have in common: their types, their bounds, and how a wrong one is refused.

A model of this kind is the one definition of an optimizer's hyperparameters: it validates them, holds torch.optim's
defaults, and is the JSON Schema in the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic.config import JsonDict

from optimd_service.errors import InvalidHyperparameter

LONGEST_NAME_SHOWN = 80


def _not_zero_in_float32(eps: float) -> float:
    """Refuse an ε that float32 takes for 0: a parameter whose gradient has always been 0 would become 0/(√0 + 0)."""
    if eps < torch.finfo(torch.float32).tiny:
        raise ValueError("eps is so small that it is 0 in float32")
    return eps


# Far beyond sense, and far enough below float32's largest number that products of two such numbers and a weight's
# share of them reach the kernels as infinities at worst, never as numbers that they refuse half-way.
LARGEST = 1e18

LearningRate = Annotated[float, Field(ge=0, le=LARGEST, description="Learning rate: parameter units per step.")]
Beta = Annotated[float, Field(ge=0, lt=1)]
# JSON has no tuples, so a list is one; what lies inside stays strict.
Betas = Annotated[tuple[Beta, Beta], Strict(strict=False)]
Betas3 = Annotated[tuple[Beta, Beta, Beta], Strict(strict=False)]
Eps = Annotated[
    float,
    Field(gt=0, le=LARGEST, description="ε: added to the denominator, in gradient units."),
    AfterValidator(_not_zero_in_float32),
]
# More steps than any run has, and few enough to be exact in float64.
Steps = Annotated[int, Field(ge=0, le=10**15)]
Momentum = Annotated[
    float, Field(ge=0, le=LARGEST, description="Factor of the momentum buffer; 0 is none, and keeps no buffer.")
]
L2Decay = Annotated[float, Field(ge=0, le=LARGEST, description="λ: λ·p is added to the gradient.")]
DecoupledDecay = Annotated[float, Field(ge=0, le=LARGEST, description="λ: lr·λ·p is taken from the parameter.")]
EitherDecay = Annotated[
    float,
    Field(ge=0, le=LARGEST, description="λ: λ·p is added to the gradient; decoupled, lr·λ·p is taken from p."),
]

STRUCTURAL: JsonDict = {"structural": True}
"""``json_schema_extra`` of a field that decides which buffers exist, and is therefore fixed at creation."""


class Hyperparameters(BaseModel):
    """One full set of hyperparameters; subclasses name them, as torch.optim does, with its defaults.

    Strict: a number is a number (an integer counts as one), never a string or a bool, and always finite.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    lr: LearningRate

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, optimizer: str, where: str) -> Self:
        """Read ``values``; what they leave out takes its default.

        Args:
          values: hyperparameter name → value.
          optimizer: its name, for the error.   where: path of ``values`` in the request, for the error's ``field``.

        Raises: InvalidHyperparameter, naming the first wrong field.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise cls._refusal(error, optimizer, where) from None

    @classmethod
    def structural(cls) -> frozenset[str]:
        """Names of the fields that are fixed at creation."""
        return frozenset(name for name, field in cls.model_fields.items() if field.json_schema_extra == STRUCTURAL)

    @classmethod
    def _refusal(cls, error: ValidationError, optimizer: str, where: str) -> InvalidHyperparameter:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = list(shown(first["loc"]))
        name = path[0]
        if first["type"] == "extra_forbidden":
            detail = f"{optimizer} has no hyperparameter '{name}'; it has {', '.join(cls.model_fields)}."
        else:
            detail = f"{optimizer}'s {'.'.join(path)} is refused: {reason(first['msg'])}."
        return InvalidHyperparameter(detail, field=".".join([where, *path]))


def reason(message: str) -> str:
    """A pydantic error's message without the class of the exception behind it."""
    return message.removeprefix("Value error, ")


def shown(path: tuple[int | str, ...]) -> Iterator[str]:
    """The parts of a path as text; a sender's name may be a megabyte long, and is cut."""
    return (str(part)[:LONGEST_NAME_SHOWN] for part in path)
