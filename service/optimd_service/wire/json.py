"""JSON, read strictly: what Python's reader lets pass and a trainer would regret is refused here."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np
import orjson
import torch

from optimd_service.errors import InvalidField, MalformedJson, ShapeMismatch
from optimd_service.types import Layout
from optimd_service.wire.match import NameCheck, check_names

# A body of this size is read in a fraction of a second; larger ones belong in safetensors.
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_JSON_PARAMETERS = 1_000_000


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJson(f"The body holds {name}, which is not JSON; leave the field out or send null.", reason=name)


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise MalformedJson(f"The number {text[:40]} is beyond the range of a float.", reason="number-range")
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJson(f"The field {twice[:80]!r} stands twice in one object; keep one.", reason="duplicate-field")
    return fields


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_fields
)


def read_json(text: str | bytes | bytearray | memoryview) -> Any:
    """Read one JSON text.

    Raises: MalformedJson for anything that is not UTF-8 JSON, and for NaN, infinities, numbers beyond the float
    range, integers of thousands of digits, duplicate fields and nesting beyond the interpreter's stack.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else str(text, "utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedJson(f"The body is not UTF-8 at byte {error.start}.", reason="utf-8") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"The body is not JSON: {error.msg} at character {error.pos}.", reason="syntax") from None
    except RecursionError:
        raise MalformedJson("The body is nested too deeply.", reason="nesting") from None
    except ValueError:  # Python's own bound on the digits of an integer
        raise MalformedJson("The body holds an integer of thousands of digits.", reason="number-range") from None


def read_object(text: str | bytes | bytearray | memoryview) -> dict[str, Any]:
    """Read one JSON text that must be an object."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise MalformedJson("The body must be a JSON object, {...}.", reason="not-an-object")
    return value


def array_from_json(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Turn nested lists of numbers into an array; booleans, strings, nulls and ragged lists are refused.

    Raises: InvalidField naming the tensor.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # ragged, deeper than NumPy's 64 dimensions, or an integer beyond int64
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or _holds_booleans(value):
        raise InvalidField(f"{name}: send nested lists of numbers, all rows of one length.", field=name)
    return array.astype(np.float64)


def _holds_booleans(value: Any) -> bool:
    # NumPy reads [1.0, true] as [1.0, 1.0]: a slip that would train on silently.
    if isinstance(value, list):
        return any(map(_holds_booleans, value)) if value and isinstance(value[0], list) else bool in map(type, value)
    return isinstance(value, bool)


def land_json_(
    flat: torch.Tensor,
    layout: Layout,
    tensors: Any,
    *,
    what: str,
    by_rows: Collection[str] = (),
    check: NameCheck = check_names,
) -> None:
    """Write JSON tensors into a flat buffer, shape [numel]; all are checked before the first is written.

    Args:
      by_rows: tensors whose rows came, which somebody else lands.
      check: which of the layout's tensors there must be.

    Raises: InvalidField, TensorMismatch, ShapeMismatch.
    """
    if not isinstance(tensors, Mapping):
        raise InvalidField(f"`{what}` must be an object that maps tensor names to nested lists.", field=what)
    check(layout, tensors.keys())
    whole = {name: layout.shapes[name] for name in tensors if name not in by_rows}
    arrays = {name: _shaped(name, shape, tensors[name]) for name, shape in whole.items()}
    for name, view in layout.views(flat).items():
        if name in arrays:
            view.copy_(torch.from_numpy(arrays[name]))


def _shaped(name: str, shape: tuple[int, ...], value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = array_from_json(name, value)
    # A tensor of shape [0, 3] can only be written as [] in JSON.
    if array.size == 0 and math.prod(shape) == 0 and array.shape == shape[: array.ndim]:
        return array.reshape(shape)
    if array.shape != shape:
        raise ShapeMismatch(
            f"Tensor {name!r} has shape {list(array.shape)}; the session's is {list(shape)}.",
            tensor=name,
            expected=list(shape),
            got=list(array.shape),
        )
    return array


def finite_or_none(value: float | None) -> float | None:
    """The value, or None (JSON's null) where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def tensors_to_json(views: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Tensors as nested lists."""
    return {name: view.tolist() for name, view in views.items()}


def write_json(value: Any) -> bytes:
    """Write compact JSON; a float that is not finite becomes null."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # A lone surrogate in a name that is quoted back, or an integer beyond 64 bits: the slow writer escapes it.
        return json.dumps(value, separators=(",", ":")).encode()
