"""The dtypes that travel: safetensors' names, the query's short names, and torch's own."""

from __future__ import annotations

import torch

from optimd_service.errors import InvalidField, UnsupportedDtype

WIRE_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in WIRE_DTYPES.items()}
ITEM_BYTES: dict[str, int] = {name: dtype.itemsize for name, dtype in WIRE_DTYPES.items()}


def wire_dtype(name: str, tensor: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name; ``tensor`` is named in the error."""
    try:
        return WIRE_DTYPES[name]
    except KeyError:
        raise UnsupportedDtype(
            f"Tensor {tensor!r} has dtype {name!r}; send one of {', '.join(WIRE_DTYPES)}.",
            tensor=tensor,
            dtype=name,
            supported=list(WIRE_DTYPES),
        ) from None


def queried_dtype(field: str, value: str) -> torch.dtype:
    """The torch dtype of a query parameter such as ``pull=bf16``."""
    try:
        return WIRE_DTYPES[value.upper()]
    except KeyError:
        choices = ", ".join(name.lower() for name in WIRE_DTYPES)
        raise InvalidField(f"{field}={value!r} is not a dtype; use one of {choices}.", field=field) from None
