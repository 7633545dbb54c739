"""Every hyperparameter: its default, its bounds, its description, and the error that names it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from optim_references import REFERENCES, SETTINGS

from optimd_service.errors import InvalidField, InvalidHyperparameter
from optimd_service.optim.catalogue import OPTIMIZERS, describe, find
from optimd_service.optim.flat_group import FlatGroup
from optimd_service.optim.update import Here, new_scratch, update_

EVERY_FIELD = [(name, field) for name, row in OPTIMIZERS.items() for field in row.hyperparameters.model_fields]
every_field = pytest.mark.parametrize(("optimizer", "field"), EVERY_FIELD)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def refused_field(optimizer: str, values: dict[str, Any], where: str = "optimizer") -> Any:
    with pytest.raises(InvalidHyperparameter) as refusal:
        find(optimizer).parse(values, where=where)
    assert "Value error" not in refusal.value.detail
    return refusal.value.evidence["field"]


@every_field
def test_defaults_are_the_references_own(optimizer: str, field: str) -> None:
    theirs = inspect.signature(REFERENCES[optimizer]).parameters[field].default
    assert describe(find(optimizer))["defaults"][field] == (list(theirs) if isinstance(theirs, tuple) else theirs)


@every_field
@pytest.mark.parametrize("wrong", [-1, "1", None, [], {}, float("nan"), float("inf"), 10**400])
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


@every_optimizer
def test_the_structural_fields_are_the_ones_that_only_creation_can_set(optimizer: str) -> None:
    model = find(optimizer).hyperparameters
    assert model.structural() == {"amsgrad", "centered"} & set(model.model_fields)
    properties = describe(find(optimizer))["hyperparameters"]["properties"]
    assert {name for name, schema in properties.items() if schema.get("structural")} == model.structural()


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


def test_the_catalogue_states_each_optimizers_memory() -> None:
    sizes = {name: describe(row)["bytes_per_parameter"] for name, row in OPTIMIZERS.items()}
    assert sizes == {"sgd": 0, "rmsprop": 4, "adam": 8, "adamw": 8, "lion": 4}


def test_an_unknown_optimizer_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidField, match="sgd, rmsprop, adam, adamw, lion") as refusal:
        find("adamz")
    assert refusal.value.evidence == {"field": "optimizer.name"}


def largest_settings() -> list[tuple[str, dict[str, float]]]:
    """Each optimizer with each of its bounded numbers, and all of them together, as large as they may be."""
    settings = []
    for name, optimizer in OPTIMIZERS.items():
        schema = optimizer.hyperparameters.model_json_schema()["properties"]
        largest = {field: float(about["maximum"]) for field, about in schema.items() if "maximum" in about}
        settings += [(name, {field: value}) for field, value in largest.items()] + [(name, largest)]
    return settings


@pytest.mark.parametrize(("name", "settings"), largest_settings())
def test_the_largest_numbers_allowed_do_not_break_an_update(name: str, settings: dict[str, float]) -> None:
    optimizer = find(name)
    hyper = optimizer.parse(settings, where="optimizer")
    state = {buffer: torch.zeros(5) for buffer in optimizer.state(hyper)}
    for step in (1, 2):
        group = FlatGroup(torch.ones(5), torch.ones(5), state, step, fresh=step == 1)
        update_(optimizer, group, hyper, Here(new_scratch(5, torch.float32)))
    for field, value in settings.items():
        with pytest.raises(InvalidHyperparameter) as refusal:
            optimizer.parse({field: value * 10}, where="optimizer")
        assert refusal.value.evidence["field"] == f"optimizer.{field}"


def test_every_hyperparameter_that_is_not_a_share_is_bounded() -> None:
    bounded = {field for _, settings in largest_settings() for field in settings}
    assert {"lr", "eps", "weight_decay", "momentum"} <= bounded
