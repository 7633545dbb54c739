"""The optimizers that a session can have, described once for all callers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from optimd_service.optim.catalogue import OPTIMIZERS, describe
from optimd_service.optim.optimizer import Optimizer
from optimd_service.optim.refused import REFUSED
from optimd_service.optim.state_dtype import StateDtype, bytes_per_parameter, compressible

__all__ = ["REFUSED", "catalogue", "page"]


@cache
def catalogue() -> Mapping[str, dict[str, Any]]:
    """Name → description, as `GET /v1/optimizers` gives it."""
    return {name: {**describe(row), "state_dtypes": _state_dtypes(row)} for name, row in OPTIMIZERS.items()}


def _state_dtypes(optimizer: Optimizer[Any]) -> dict[str, float]:
    """What the state may be kept in → bytes per parameter."""
    if not compressible(optimizer):
        return {"f32": describe(optimizer)["bytes_per_parameter"]}
    hyper = optimizer.hyperparameters()
    return {dtype: bytes_per_parameter(optimizer, hyper, dtype) for dtype in get_args(StateDtype)}


def page() -> str:
    """The catalogue as a page of documentation."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield from (
        "# Optimizers",
        "",
        "This page is what `optimd-server optimizers` prints; a server gives the same, with the JSON Schema of every",
        "hyperparameter, at `GET /v1/optimizers`. Bytes are of state for each trained parameter, in `state_dtype` f32,",
        "bf16 and 8bit, with the default hyperparameters; where state depends on a tensor's shape, for a matrix of",
        "1024 × 1024.",
        "",
        "| optimizer | what it does | state | bytes |",
        "|---|---|---|---|",
    )
    rows = catalogue().values()
    for row in rows:
        figures = " / ".join(f"{value:.3g}" for value in row["state_dtypes"].values())
        state = ", ".join(row["state"]) or "–"
        yield f"| [`{row['name']}`](#{row['name']}) | {_cell(row['summary'])} | {state} | {figures} |"
    for row in rows:
        yield from ("", f"## {row['name']}", "", f"{row['source']}.", "", "| hyperparameter | default | meaning |")
        yield "|---|---|---|"
        fields = row["hyperparameters"]["properties"]
        for name, default in row["defaults"].items():
            meaning = _cell(fields[name].get("description", ""))
            yield f"| `{name}` | `{json.dumps(default)}` | {meaning} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
