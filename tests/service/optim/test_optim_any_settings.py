"""Settings drawn from every optimizer's own bounds: none makes an update raise, and none of sense makes it NaN."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from optim_flat_run import FlatRun, layout_of

from optimd_service.errors import InvalidHyperparameter
from optimd_service.optim.catalogue import OPTIMIZERS, find

TABLES = [(4, 5), (3, 7)]
SHAPES: Mapping[str, list[tuple[int, ...]]] = {"muon": TABLES, "sparse_adam": TABLES}
STEPS, DRAWS = 3, 40
DTYPES = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64))
# In each step all gradients are of one of these sizes; squares of the last are infinite in float32.
SENSIBLE_SIZES = (0.0, 1e-45, 1e-30, 1e-8, 1.0, 1e4)
ALL_SIZES = (*SENSIBLE_SIZES, 1e10, 1e19, 1e30)


def drawn(schema: Mapping[str, Any], rng: random.Random, largest: float) -> Any:
    """A value that a JSON Schema allows, often one at its bounds, and no number above ``largest``."""
    if "anyOf" in schema:
        return drawn(rng.choice(schema["anyOf"]), rng, largest)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "null":
            return None
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [drawn(part, rng, largest) for part in schema["prefixItems"]]
        case _:
            return number(schema, rng, largest)


def number(schema: Mapping[str, Any], rng: random.Random, largest: float) -> float:
    least = schema.get("minimum", math.nextafter(schema.get("exclusiveMinimum", -1.0), math.inf))
    most = min(schema.get("maximum", math.nextafter(schema.get("exclusiveMaximum", largest), -math.inf)), largest)
    found = rng.choice([least, most, most / 2, least + 1e-9, least + (most - least) * 10 ** rng.uniform(-9, 0)])
    return int(found) if schema["type"] == "integer" else min(max(found, least), most)


def settings(optimizer: str, rng: random.Random, largest: float) -> dict[str, Any]:
    """Some of the hyperparameters, drawn anew until they go with one another."""
    properties = find(optimizer).hyperparameters.model_json_schema()["properties"]
    while True:
        values = {name: drawn(about, rng, largest) for name, about in properties.items() if rng.random() < 0.5}
        try:
            find(optimizer).parse(values, where="optimizer")
        except InvalidHyperparameter:
            continue
        return values


def run_of(optimizer: str, values: Mapping[str, Any], sizes: tuple[float, ...], rng: random.Random) -> FlatRun:
    """A few steps with gradients of which many are 0, up to the largest that the optimizer is given."""
    dtype, wire = rng.choice(DTYPES)
    layout = layout_of(SHAPES.get(optimizer, [(), (0,), (3,), (4, 5)]), dtype)
    run = FlatRun(optimizer, values, layout, block=rng.choice([7, 2**20]))
    run.params.mul_(rng.choice([0.0, 1e-30, 1.0]))
    for _ in range(STEPS):
        grads = [rng.gauss(0, 1) * (rng.random() < 0.7) for _ in range(layout.numel)]
        pushed = (torch.tensor(grads, dtype=torch.float64) * rng.choice(sizes)).to(wire)
        if pushed.double().norm() <= run.optimizer.longest:
            run.step(pushed)
    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_settings_within_bounds_make_an_update_raise(optimizer: str) -> None:
    rng = random.Random(0)  # noqa: S311  draws that a failure can be repeated with
    for _ in range(DRAWS):
        run_of(optimizer, settings(optimizer, rng, 1e18), ALL_SIZES, rng)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sensible_settings_never_make_a_weight_nan(optimizer: str) -> None:
    rng = random.Random(1)  # noqa: S311  draws that a failure can be repeated with
    for _ in range(DRAWS):
        values = settings(optimizer, rng, 10.0)
        assert run_of(optimizer, values, SENSIBLE_SIZES, rng).params.isfinite().all(), values


# Adafactor's means of squares are torch's own code.
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.keys() - {"adafactor", "soap", "shampoo"}))
def test_a_gradient_whose_square_overflows_leaves_every_weight_finite(optimizer: str) -> None:
    layout = layout_of(SHAPES.get(optimizer, [(3,), (4, 5)]))
    for betas in ({}, _forgetting(optimizer)):
        run = FlatRun(optimizer, betas, layout)
        for size in (1.0, 1e25, 1.0, 1e-3):
            run.step(torch.full((layout.numel,), size))
        assert run.params.isfinite().all(), betas


def _forgetting(optimizer: str) -> dict[str, Any]:
    """Settings in which a mean of squares keeps nothing of what was."""
    fields = find(optimizer).hyperparameters.model_fields
    found: dict[str, Any] = {
        name: 0.0 for name in ("alpha", "rho") if optimizer in {"rmsprop", "adadelta"} and name in fields
    }
    if "betas" in fields:
        found["betas"] = [*fields["betas"].default[:-1], 0.0]
    return found
