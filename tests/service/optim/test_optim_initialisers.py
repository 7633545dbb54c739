"""Initialisers give torch.nn.init's own bits, and refuse by name what torch would refuse or never finish."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, get_args

import pytest
import torch
from optim_references import layout_of
from pydantic import TypeAdapter

from optimd_service.errors import InvalidField
from optimd_service.optim.initialisers import INITIALISERS, Initialiser, Nonlinearity, initialise_

READER: TypeAdapter[Initialiser] = TypeAdapter(Initialiser)
SPECS: list[dict[str, Any]] = [
    {"name": "zeros"},
    {"name": "constant", "val": 0.5},
    {"name": "normal"},
    {"name": "normal", "mean": 1, "std": 0.02},
    {"name": "uniform", "a": -2, "b": 3.5},
    {"name": "trunc_normal", "std": 0.02},
    {"name": "trunc_normal", "a": 1.5, "b": 2.5},
    {"name": "xavier_uniform"},
    {"name": "xavier_normal", "gain": 2.0},
    {"name": "kaiming_uniform"},
    {"name": "kaiming_uniform", "a": 2.2, "nonlinearity": "leaky_relu"},
    {"name": "kaiming_normal", "mode": "fan_out", "nonlinearity": "relu"},
    {"name": "orthogonal", "gain": -1.5},
]
SHAPES = [(1, 1), (3, 5), (7, 3), (64, 33), (4, 3, 2, 2), (2, 1, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_bit_for_bit_torchs_when_one_generator_serves_all_tensors(dtype: torch.dtype) -> None:
    shapes = [*SHAPES, (), (5,), (0,), (17,), (1001,)]
    tasks = [(spec, shape) for spec in SPECS for shape in shapes if len(shape) > 1 or needs_no_fans(spec)]
    layout = layout_of([shape for _, shape in tasks], dtype)
    views, generator = layout.views(torch.full((layout.numel,), -9.0, dtype=dtype)), torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    for i, (spec, shape) in enumerate(tasks):
        initialise_(views[f"t{i}"], READER.validate_python(spec), generator)
        reference = torch.empty(shape, dtype=dtype)
        arguments = {name: value for name, value in spec.items() if name != "name"}
        getattr(torch.nn.init, f"{spec['name']}_")(reference, **arguments)
        assert torch.equal(views[f"t{i}"], reference), (spec, shape)


def needs_no_fans(spec: dict[str, Any]) -> bool:
    return READER.validate_python(spec).fewest_dimensions == 0


@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_tensor_draws_nothing_and_warns_of_nothing(spec: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialise_(torch.empty(3, 0), READER.validate_python(spec), generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", INITIALISERS)
def test_arguments_and_defaults_are_torchs(name: str) -> None:
    theirs = inspect.signature(getattr(torch.nn.init, f"{name}_")).parameters
    required = {"val": 0.0} if name == "constant" else {}
    ours = READER.validate_python({"name": name, **required}).model_dump(exclude={"name"})
    assert ours == {
        argument: required.get(argument, parameter.default)
        for argument, parameter in theirs.items()
        if argument not in {"tensor", "generator"}
    }


@pytest.mark.parametrize("nonlinearity", get_args(Nonlinearity))
def test_every_nonlinearity_is_one_that_torch_knows(nonlinearity: Any) -> None:
    assert torch.nn.init.calculate_gain(nonlinearity, 0.0) > 0


@pytest.mark.parametrize("name", [spec["name"] for spec in SPECS if not needs_no_fans(spec)])
def test_a_shape_without_fans_is_refused_before_anything_is_written(name: str) -> None:
    tensor, generator = torch.full((5,), 7.0), torch.Generator().manual_seed(3)
    with pytest.raises(InvalidField) as refusal:
        initialise_(tensor, READER.validate_python({"name": name}), generator)
    assert refusal.value.evidence == {"field": "init.name"}
    assert torch.equal(tensor, torch.full((5,), 7.0))
