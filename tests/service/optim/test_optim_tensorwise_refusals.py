"""What optimizers that look at tensors refuse, and names that are refused with a reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from optim_tensor_references import REFERENCES, TensorRun, gradients

from optimd_service.errors import InvalidField, InvalidHyperparameter
from optimd_service.optim.catalogue import OPTIMIZERS, describe, find


def test_muon_refuses_what_is_no_matrix_and_names_it() -> None:
    row = find("muon")
    assert row.check is not None
    row.check(row.hyperparameters(), {"fc.weight": (10, 4)})
    with pytest.raises(InvalidField, match=r"'fc.bias' has shape \[10\].*second session") as refusal:
        row.check(row.hyperparameters(), {"fc.weight": (10, 4), "fc.bias": (10,)})
    assert refusal.value.evidence["field"] == "tensors"


def test_shampoo_refuses_a_dimension_whose_root_takes_minutes() -> None:
    row = find("shampoo")
    assert row.check is not None
    with pytest.raises(InvalidField, match="8192"):
        row.check(row.hyperparameters(), {"embedding": (50_000, 8)})


@pytest.mark.parametrize("optimizer", ["soap", "shampoo"])
def test_six_dimensions_are_refused_where_buffers_have_names_for_five(optimizer: str) -> None:
    row = find(optimizer)
    assert row.check is not None
    row.check(row.hyperparameters(), {"volume": (1, 1, 1, 1, 2)})
    with pytest.raises(InvalidField, match="at most 5"):
        row.check(row.hyperparameters(), {"t": (1, 1, 1, 1, 1, 2)})


def test_without_the_library_a_row_is_listed_and_choosing_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    row = OPTIMIZERS["soap"]
    assert describe(row)["name"] == "soap"
    assert row.check is not None
    with pytest.raises(InvalidField, match=r"pip install 'optimd\[zoo\]'") as refusal:
        row.check(row.hyperparameters(), {"w": (3, 4)})
    assert refusal.value.evidence["field"] == "optimizer.name"


def numbers_at_their_limits() -> Iterator[tuple[str, str, Any]]:
    """Optimizer, field and largest or smallest value, for each bounded number of each optimizer of this kind."""
    for name in REFERENCES:
        for field, schema in OPTIMIZERS[name].hyperparameters.model_json_schema()["properties"].items():
            yield from ((name, field, schema[end]) for end in ("minimum", "maximum") if end in schema)


@pytest.mark.parametrize(("optimizer", "field", "value"), list(numbers_at_their_limits()))
def test_numbers_at_their_limits_do_not_break_an_update_and_beyond_them_are_refused(
    optimizer: str, field: str, value: float
) -> None:
    run = TensorRun(optimizer, {field: value})
    for grads in gradients(run.shapes, steps=2):
        run.step(grads)
    further = -1 if value == 0 else value * 10 if value > 1 else value - 1
    if optimizer == "adafactor" and field == "beta2_decay":
        further = 1 if value == 0 else value * 10
    with pytest.raises(InvalidHyperparameter) as refusal:
        run.optimizer.parse({field: further}, where="optimizer")
    assert refusal.value.evidence["field"] == f"optimizer.{field}"


def test_a_gradient_epsilon_whose_square_is_0_in_float32_is_refused() -> None:
    with pytest.raises(InvalidHyperparameter, match="its square is 0 in float32"):
        find("adafactor").parse({"eps": [1e-20, 1e-3]}, where="optimizer")


@pytest.mark.parametrize("name", ["lbfgs", "LBFGS", "sam", "adahessian", "sophia-h"])
def test_an_optimizer_left_out_on_purpose_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidField, match=f"no optimizer '{name}' here: it (needs|evaluates)"):
        find(name)


@pytest.mark.parametrize("coefficients", [(100.0, 6.0, 9.0), (0.0, -100.0, 0.0), (3.4445, -4.775, 20.0)])
def test_muon_refuses_an_iteration_that_grows_without_end(coefficients: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidHyperparameter, match="grow without end") as refusal:
        find("muon").parse({"ns_coefficients": list(coefficients)}, where="optimizer")
    assert refusal.value.evidence["field"] == "optimizer.ns_coefficients"
