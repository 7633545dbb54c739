"""Every hyperparameter: its default, its bounds, its description, and the error that names it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from optim_references import ROW, ROWS, SETTINGS, FlatRun, Row, layout_of

from optimd_service.errors import InvalidField, InvalidHyperparameter
from optimd_service.optim.catalogue import OPTIMIZERS, describe, find

EVERY_FIELD = [(name, field) for name, row in OPTIMIZERS.items() for field in row.hyperparameters.model_fields]
WRONG = [-1, "1", None, [], {}, float("nan"), float("inf"), 10**400]
every_field = pytest.mark.parametrize(("optimizer", "field"), EVERY_FIELD)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def refused_field(optimizer: str, values: dict[str, Any], where: str = "optimizer") -> Any:
    with pytest.raises(InvalidHyperparameter) as refusal:
        find(optimizer).parse(values, where=where)
    assert "Value error" not in refusal.value.detail
    return refusal.value.evidence["field"]


def defaults_of_references() -> list[tuple[str, str, Any]]:
    """Every optimizer, field and default that the optimizer's reference has, too."""
    theirs = {row.name: inspect.signature(row.reference).parameters for row in ROWS}
    names = [(name, field, ROW[name].renamed.get(field, field)) for name, field in EVERY_FIELD if name in ROW]
    return [(name, field, theirs[name][their].default) for name, field, their in names if their in theirs[name]]


@pytest.mark.parametrize(("optimizer", "field", "theirs"), defaults_of_references())
def test_defaults_are_the_references_own(optimizer: str, field: str, theirs: Any) -> None:
    assert describe(find(optimizer))["defaults"][field] == (list(theirs) if isinstance(theirs, tuple) else theirs)


def wrong_values() -> list[tuple[str, str, Any]]:
    """Every field with values out of range or of another kind; some may be None, some may be negative."""
    cases = []
    for name, field in EVERY_FIELD:
        schema = describe(find(name))["hyperparameters"]["properties"][field]
        may_be = [None] if {"type": "null"} in schema.get("anyOf", []) else []
        may_be += [-1] if min(schema.get("minimum", 0), schema.get("exclusiveMinimum", 0)) < 0 else []
        cases += [(name, field, wrong) for wrong in WRONG if wrong not in may_be]
    return cases


@pytest.mark.parametrize(("optimizer", "field", "wrong"), wrong_values(), ids=lambda value: str(value)[:20])
def test_a_value_out_of_range_or_kind_is_refused_by_name(optimizer: str, field: str, wrong: Any) -> None:
    assert refused_field(optimizer, {field: wrong}).startswith(f"optimizer.{field}")


@every_field
def test_a_bool_is_no_number_and_a_number_no_bool(optimizer: str, field: str) -> None:
    is_bool = isinstance(describe(find(optimizer))["defaults"][field], bool)
    assert refused_field(optimizer, {field: 1 if is_bool else True}) == f"optimizer.{field}"


@pytest.mark.parametrize(
    ("optimizer", "values", "field"),
    [
        ("adamw", {"betas": [0.9, 1.0]}, "groups.no_decay.betas.1"),
        ("adam", {"betas": [1, 0.9]}, "groups.no_decay.betas.0"),
        ("lion", {"betas": ["0.9", 0.9]}, "groups.no_decay.betas.0"),
        ("lion", {"betas": [0.9]}, "groups.no_decay.betas.1"),
        ("lion", {"betas": [0.9, 0.9, 0.9]}, "groups.no_decay.betas"),
        ("adamw", {"eps": 0}, "groups.no_decay.eps"),
        ("adamw", {"eps": 1e-50}, "groups.no_decay.eps"),
        ("rmsprop", {"alpha": 1}, "groups.no_decay.alpha"),
        ("sgd", {"dampening": 1.5, "momentum": 0.9}, "groups.no_decay.dampening"),
        ("sgd", {"nesterov": True}, "groups.no_decay.nesterov"),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "groups.no_decay.nesterov"),
    ],
)
def test_the_error_gives_the_path_as_the_sender_wrote_it(optimizer: str, values: dict[str, Any], field: str) -> None:
    assert refused_field(optimizer, values, where="groups.no_decay") == field


def test_another_optimizers_hyperparameter_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(InvalidHyperparameter) as refusal:
        find("adamw").parse({"momentum": 0.9}, where="optimizer")
    assert refusal.value.evidence == {"field": "optimizer.momentum"}
    assert refusal.value.detail == (
        "adamw has no hyperparameter 'momentum'; it has lr, betas, eps, weight_decay, amsgrad."
    )


def test_a_name_a_megabyte_long_is_not_sent_back() -> None:
    assert len(refused_field("sgd", {"x" * 1_000_000: 1})) < 200


def test_integers_are_numbers_and_lists_are_betas() -> None:
    hyper = find("adam").parse({"lr": 1, "betas": [0, 0.5]}, where="optimizer")
    assert (hyper.lr, hyper.betas) == (1.0, (0.0, 0.5))


@pytest.mark.parametrize("optimizer", ROW)
def test_the_schema_marks_the_structural_fields(optimizer: str) -> None:
    properties = describe(find(optimizer))["hyperparameters"]["properties"]
    marked = {name for name, schema in properties.items() if schema.get("structural")}
    assert marked == find(optimizer).hyperparameters.structural()
    assert marked <= {field for settings in ROW[optimizer].settings for field in settings}


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_only_a_structural_field_changes_which_buffers_are_needed(optimizer: str, settings: dict[str, Any]) -> None:
    row = find(optimizer)
    needed = [
        set(row.state(row.parse(values, where="optimizer"))) - set(row.optional_state) for values in ({}, settings)
    ]
    assert needed[0] == needed[1] or row.hyperparameters.structural() & settings.keys()


@every_optimizer
def test_the_catalogue_describes_every_hyperparameter(optimizer: str) -> None:
    row = describe(find(optimizer))
    assert row["summary"]
    assert row["source"]
    properties = row["hyperparameters"]["properties"]
    assert set(properties) == set(row["defaults"])
    assert all(schema["description"] for schema in properties.values())


@pytest.mark.parametrize(("optimizer", "settings"), SETTINGS)
def test_the_schema_accepts_what_the_model_accepts(optimizer: str, settings: dict[str, Any]) -> None:
    schema = describe(find(optimizer))["hyperparameters"]
    Draft202012Validator.check_schema(schema)
    as_json = find(optimizer).parse(settings, where="optimizer").model_dump(mode="json")
    assert Draft202012Validator(schema).is_valid(as_json)
    assert not Draft202012Validator(schema).is_valid({"lr": -1})


@pytest.mark.parametrize("row", [row for row in ROWS if find(row.name).shapes is None], ids=lambda row: row.name)
def test_the_catalogue_states_each_optimizers_memory(row: Row) -> None:
    run = FlatRun(row.name, {}, layout_of([(10,)]))
    held = sum(buffer.nbytes for buffer in run.flat.values())
    assert describe(find(row.name))["bytes_per_parameter"] == held / 10


def test_an_unknown_optimizer_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidField, match=r"'adamw' is meant.*sgd, rmsprop, adam, adamw, lion") as refusal:
        find("AdamW")
    assert refusal.value.evidence == {"field": "optimizer.name"}


def largest_settings() -> list[tuple[str, dict[str, float]]]:
    """Each optimizer with each of its bounded numbers, and all of them together, as large as they may be."""
    settings = []
    for name in ROW:
        schema = find(name).hyperparameters.model_json_schema()["properties"]
        largest = {field: about["maximum"] for field, about in schema.items() if "maximum" in about}
        settings += [(name, {field: value}) for field, value in largest.items()] + [(name, largest)]
    return settings


@pytest.mark.parametrize(("name", "settings"), largest_settings())
def test_the_largest_numbers_allowed_do_not_break_an_update(name: str, settings: dict[str, float]) -> None:
    optimizer = find(name)
    layout = layout_of(ROW[name].shapes)
    run = FlatRun(name, settings, layout)
    for _ in range(2):
        run.step(torch.ones(layout.numel))
    for field, value in settings.items():
        with pytest.raises(InvalidHyperparameter) as refusal:
            optimizer.parse({field: value * 10}, where="optimizer")
        assert refusal.value.evidence["field"] == f"optimizer.{field}"


def test_every_hyperparameter_that_is_not_a_share_is_bounded() -> None:
    bounded = {field for _, settings in largest_settings() for field in settings}
    assert {"lr", "eps", "weight_decay", "momentum"} <= bounded
