"""Every parameter of a schedule: its default, its bounds, and its place on the page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from torch.optim import lr_scheduler

from optimd_service.optim.schedules import SCHEDULES, Schedule

READER: TypeAdapter[Any] = TypeAdapter(Schedule)
SCHEMA = READER.json_schema()
FIELDS = {
    name: SCHEMA["$defs"][reference.rpartition("/")[2]]["properties"]
    for name, reference in SCHEMA["discriminator"]["mapping"].items()
}
PAGE = Path(__file__).parents[3] / "docs" / "schedules.md"

SMALLEST: Mapping[str, dict[str, Any]] = {
    "constant": {},
    "step": {"step_size": 10},
    "multistep": {"milestones": [10]},
    "exponential": {"gamma": 0.9},
    "linear": {},
    "polynomial": {},
    "cosine": {"total_steps": 10},
    "cosine_restarts": {"t_0": 10},
    "one_cycle": {"max_lr": 1.0, "total_steps": 10},
    "cyclic": {"base_lr": 0.1, "max_lr": 1.0},
    "reduce_on_plateau": {},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"total_steps": 10, "decay_steps": 3},
    "sequential": {"schedules": [{"name": "constant"}, {"name": "linear"}], "milestones": [10]},
    "chained": {"schedules": [{"name": "constant"}]},
}
TORCHS = {
    "constant": lr_scheduler.ConstantLR,
    "step": lr_scheduler.StepLR,
    "multistep": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "linear": lr_scheduler.LinearLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "one_cycle": lr_scheduler.OneCycleLR,
    "cyclic": lr_scheduler.CyclicLR,
    "reduce_on_plateau": lr_scheduler.ReduceLROnPlateau,
}
RENAMED = {
    ("cosine", "total_steps"): "T_max",
    ("cosine_restarts", "t_0"): "T_0",
    ("cosine_restarts", "t_mult"): "T_mult",
}
EVERY_FIELD = [(name, field) for name in SCHEDULES for field in FIELDS[name] if field != "name"]
every_field = pytest.mark.parametrize(("name", "field"), EVERY_FIELD)


def refusal(name: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The field that is named, and what is said of it."""
    with pytest.raises(ValidationError) as refused:
        READER.validate_python({"name": name, **SMALLEST[name], **fields})
    first = refused.value.errors()[0]
    return str(first["loc"][1]), first["msg"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_required_is_enough(name: str) -> None:
    assert READER.validate_python({"name": name, **SMALLEST[name]}).name == name


@pytest.mark.parametrize(("name", "field"), [pair for pair in EVERY_FIELD if pair[0] in TORCHS])
def test_parameters_and_defaults_are_torchs_own(name: str, field: str) -> None:
    if field == "warmup_steps":
        assert FIELDS[name][field]["default"] == 0
    elif field == "warmup_start_factor":
        parameters = inspect.signature(lr_scheduler.LinearLR).parameters
        assert FIELDS[name][field]["default"] == parameters["start_factor"].default
    else:
        default = inspect.signature(TORCHS[name]).parameters[RENAMED.get((name, field), field)].default
        unset = default is inspect.Parameter.empty or (name, field) == ("one_cycle", "total_steps")
        assert FIELDS[name][field].get("default", inspect.Parameter.empty) == (
            inspect.Parameter.empty if unset else default
        )


@every_field
@pytest.mark.parametrize("wrong", [-1, "1", float("nan"), float("inf"), 10**400, {}])
def test_a_value_out_of_range_or_kind_is_refused_by_name(name: str, field: str, wrong: Any) -> None:
    assert refusal(name, {field: wrong})[0] == field


@every_field
def test_a_bool_is_no_number_and_a_number_no_bool(name: str, field: str) -> None:
    is_bool = FIELDS[name][field].get("type") == "boolean"
    assert refusal(name, {field: 1 if is_bool else True})[0] == field


WRONG = [
    ("cosine", {"warmup_steps": 10}, "total_steps", "more than warmup_steps (10)"),
    ("one_cycle", {"warmup_steps": 11}, "total_steps", "more than warmup_steps (11)"),
    ("warmup_stable_decay", {"warmup_steps": 12}, "total_steps", "more than warmup_steps (12)"),
    ("warmup_stable_decay", {"warmup_steps": 8}, "decay_steps", "at most the 2 updates"),
    ("multistep", {"milestones": [20, 10]}, "milestones", "must ascend"),
    ("sequential", {"milestones": [0]}, "milestones", "above 0"),
    ("sequential", {"milestones": []}, "milestones", "one fewer than the 2 schedules"),
    ("sequential", {"milestones": [5, 5]}, "milestones", "ascend"),
    ("sequential", {"schedules": []}, "schedules", "at least 1 item"),
    ("sequential", {"schedules": [{"name": "reduce_on_plateau"}]}, "schedules", "does not match any"),
    ("sequential", {"warmup_steps": 3}, "warmup_steps", "not permitted"),
    ("chained", {"schedules": [{"name": "cosine", "total_steps": 9, "eta_min": 0.1}]}, "schedules", "no eta_min"),
    ("chained", {"schedules": [{"name": "one_cycle", "max_lr": 1.0, "total_steps": 9}]}, "schedules", "match any"),
    ("one_cycle", {"three_phase": True, "pct_start": 0.6}, "three_phase", "at most 0.5"),
    ("one_cycle", {"base_momentum": 0.97}, "max_momentum", "not be less than base_momentum"),
    ("one_cycle", {"max_lr": [0.1, 0.2]}, "max_lr", "valid number"),
    ("cyclic", {"base_lr": 2.0}, "max_lr", "not be less than base_lr"),
    ("cyclic", {"mode": "square"}, "mode", "'triangular'"),
    ("exponential", {"gamma": 0.0}, "gamma", "greater than 0"),
    ("linear", {"start_factor": 0.0}, "start_factor", "greater than 0"),
    ("reduce_on_plateau", {"factor": 1.0}, "factor", "less than 1"),
    ("step", {"step_size": 0}, "step_size", "greater than or equal to 1"),
    ("step", {"step_size": 10.5}, "step_size", "integer"),
    ("step", {"T_max": 10}, "T_max", "not permitted"),
]


@pytest.mark.parametrize(("name", "fields", "field", "said"), WRONG)
def test_a_refusal_names_the_field_and_says_what_it_needs(
    name: str, fields: dict[str, Any], field: str, said: str
) -> None:
    named, message = refusal(name, fields)
    assert named == field
    assert said in message


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stands_on_its_page_with_its_parameters(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE.read_text(), re.MULTILINE)
    own = {field for field in FIELDS[name] if field != "name" and not field.startswith("warmup_")}
    assert own == set(re.findall(r"`(\w+)`", row.split("|")[2]))


def test_every_example_on_the_page_is_a_schedule() -> None:
    examples = re.findall(r'^    ("schedule": \{.*?\})\n\n', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        READER.validate_python(TypeAdapter(dict[str, Any]).validate_json(f"{{{example}}}")["schedule"])
