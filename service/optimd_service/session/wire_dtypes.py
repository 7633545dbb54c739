"""In which dtypes a session's gradients and weights travel, where a call does not say otherwise."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from optimd_service.errors import InvalidField
from optimd_service.wire.dtypes import WIRE_DTYPES

WireDtype = Annotated[Literal["F32", "BF16", "F16"], BeforeValidator(lambda v: v.upper() if isinstance(v, str) else v)]


class Wire(BaseModel):
    """Dtypes of the wire; null is the session's own. What is kept and computed does not depend on them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    grads: WireDtype | None = Field(None, description="What clients send gradients in; every dtype is taken.")
    params: WireDtype | None = Field(None, description="Of weights in replies that are not asked for a dtype.")
    difference: bool = Field(
        default=False,
        description="Keep in float32 what the client holds, so that a push can be answered with the difference to it: "
        "rounding errors do not stay. `params` is BF16 then.",
    )

    @property
    def params_dtype(self) -> torch.dtype | None:
        """Of ``params``."""
        return None if self.params is None else WIRE_DTYPES[self.params]

    def changed(self, change: Wire) -> Wire:
        """What ``change`` names in place of what there is. Raises: InvalidField."""
        given = {name: getattr(change, name) for name in change.model_fields_set}
        if given.get("difference", self.difference) != self.difference:
            raise InvalidField(
                "`difference` decides what memory a session keeps and is fixed when it is created; create a new one.",
                field="wire.difference",
            )
        return self.model_copy(update=given).checked()

    def checked(self, dtype: torch.dtype = torch.float32) -> Wire:
        """Itself, if a session with weights of ``dtype`` can do it. Raises: InvalidField."""
        if self.difference and (self.params != "BF16" or dtype is not torch.float32):
            raise InvalidField(
                "A difference travels in BF16, between weights in F32: say so in `params`, or leave `difference` out.",
                field="wire.difference",
            )
        return self
