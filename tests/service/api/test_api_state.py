"""Optimizer state out of one session and into another: whole, in part, with the numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from api_local import Local, assert_close
from api_subject import SAFETENSORS, Subject, Tensors, assert_equal, assert_refused
from safetensors.torch import load

from optimd_service.optim.catalogue import OPTIMIZERS
from raw_safetensors import tensor_file

STEPS = 20
MATRICES: dict[str, tuple[int, ...]] = {"first": (6, 4), "second": (4, 6), "third": (3, 3)}
SHAPES: dict[str, tuple[int, ...]] = {**MATRICES, "kernel": (2, 3, 2), "vector": (5,), "number": ()}
GROUPS = [{"name": "own", "match": ["second", "vector"], "lr": 0.02}]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def taken_by(http: httpx.Client, optimizer: str) -> dict[str, tuple[int, ...]]:
    """Shapes that the optimizer takes: all, or matrices alone."""
    body = {"optimizer": {"name": optimizer}, "tensors": [{"name": "v", "shape": [2]}]}
    return SHAPES if http.post("/v1/cost", json=body).status_code == 200 else MATRICES


def exported(subject: Subject) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state, and what is said of it."""
    content = subject.http.get(f"{subject.path}/state").content
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), header["__metadata__"]


def put(subject: Subject, state: Tensors, metadata: dict[str, str], **query: str) -> httpx.Response:
    content = tensor_file(state, metadata)
    return subject.http.put(f"{subject.path}/state", content=content, headers=SAFETENSORS, params=query)


def assert_goes_on_alike(ours: Subject, theirs: Subject, shapes: dict[str, tuple[int, ...]]) -> None:
    for step in range(STEPS):
        grads = drawn(shapes, 100 + step)
        assert ours.push(grads).status_code == theirs.push(grads).status_code == 200
    assert_equal(ours.pull(), theirs.pull())
    assert_equal(exported(ours)[0], exported(theirs)[0])
    assert exported(ours)[1].get("numbers") == exported(theirs)[1].get("numbers")


def transfer(ours: Subject, twin: Subject) -> None:
    assert (
        twin.http.put(f"{twin.path}/params", content=tensor_file(ours.pull()), headers=SAFETENSORS).status_code == 200
    )
    whole = ours.http.get(f"{ours.path}/state").content
    reply = twin.http.put(f"{twin.path}/state", content=whole, headers=SAFETENSORS)
    assert reply.status_code == 200, reply.text
    assert "passed_over" not in reply.json()


def test_the_catalogue_is_what_these_tests_go_through(http: httpx.Client) -> None:
    listed = http.get("/v1/optimizers").json()["optimizers"]
    assert [row["name"] for row in listed] == list(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_twin_that_is_given_the_state_goes_on_with_the_same_bits(http: httpx.Client, optimizer: str) -> None:
    shapes = taken_by(http, optimizer)
    ours, twin = (Subject.create(http, optimizer, params=drawn(shapes, seed), groups=GROUPS) for seed in (1, 2))
    for step in range(5):
        assert ours.push(drawn(shapes, 10 + step)).status_code == 200
    assert twin.push(drawn(shapes, 50)).status_code == 200  # its own state gives way
    transfer(ours, twin)
    before = ours.pull()
    assert_goes_on_alike(ours, twin, shapes)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in ours.pull().items())


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "rprop", "nadam", "ademamix"])
def test_state_that_is_kept_in_few_bytes_goes_over_to_the_bit(
    http: httpx.Client, optimizer: str, state_dtype: str
) -> None:
    ours, twin = (
        Subject.create(http, optimizer, params=drawn(SHAPES, seed), groups=GROUPS, state_dtype=state_dtype)
        for seed in (1, 2)
    )
    for step in range(5):
        assert ours.push(drawn(SHAPES, 10 + step)).status_code == 200
    transfer(ours, twin)
    assert_goes_on_alike(ours, twin, SHAPES)


@pytest.mark.parametrize("optimizer", [name for name, row in OPTIMIZERS.items() if row.numbers])
def test_numbers_come_out_for_each_group_and_decide_how_it_goes_on(http: httpx.Client, optimizer: str) -> None:
    ours, twin = (Subject.create(http, optimizer, params=drawn(SHAPES, 1), groups=GROUPS) for _ in range(2))
    for step in range(5):
        ours.push(drawn(SHAPES, 10 + step))
    state, metadata = exported(ours)
    numbers = json.loads(metadata["numbers"])
    assert numbers.keys() == {"own", "default"}
    for of_group in numbers.values():
        assert of_group.keys() == OPTIMIZERS[optimizer].numbers.keys()
        assert of_group != OPTIMIZERS[optimizer].numbers
    assert put(twin, state, metadata).status_code == 200
    assert json.loads(exported(twin)[1]["numbers"]) == numbers
    # What is not said is as it was at the start.
    assert put(twin, state, {"step": metadata["step"]}).status_code == 200
    fresh = {group: dict(OPTIMIZERS[optimizer].numbers) for group in numbers}
    assert json.loads(exported(twin)[1]["numbers"]) == fresh


WRONG_NUMBERS = [
    "no JSON",
    "[]",
    '{"elsewhere": {"mu_product": 0.5}}',
    '{"default": {"d": 0.5}}',
    '{"default": 0.5}',
    '{"default": {"mu_product": "0.5"}}',
    '{"default": {"mu_product": true}}',
    '{"default": {"mu_product": null}}',
    '{"default": {"mu_product": [0.5]}}',
    '{"default": {"mu_product": 1e999}}',
    '{"default": {"mu_product": NaN}}',
    '{"default": {"mu_product": 1' + 400 * "0" + "}}",
]


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("numbers", WRONG_NUMBERS, ids=lambda text: text[:40])
def test_numbers_that_are_none_are_refused(http: httpx.Client, numbers: str, strict: str) -> None:
    subject = Subject.create(http, "nadam")
    subject.push()
    state, metadata = exported(subject)
    before = subject.stands()
    reply = put(subject, state, {**metadata, "numbers": numbers}, strict=strict)
    assert_refused(reply, 422, "invalid-field", field="numbers")
    assert subject.stands() == before


def test_numbers_are_refused_where_the_optimizer_remembers_none(subject: Subject, unchanged: None) -> None:
    state, metadata = exported(subject)
    assert "numbers" not in metadata
    reply = put(subject, state, {**metadata, "numbers": '{"default": {"mu_product": 0.5}}'})
    assert_refused(reply, 422, "invalid-field", field="numbers")


# In part


OLD = {"weight": (2, 3), "bias": (2,), "old": (3,)}
NEW = {"weight": (2, 3), "bias": (2,), "new": (4,)}


@pytest.fixture
def halves(http: httpx.Client) -> Iterator[tuple[Subject, Subject]]:
    """An AdamW session under way, and a new one with two tensors of the same name and one of its own."""
    ours, theirs = (Subject.create(http, params=drawn(shapes, 1, torch.float64), lr=0.1) for shapes in (OLD, NEW))
    for step in range(5):
        ours.push(drawn(OLD, 10 + step, torch.float64))
    yield ours, theirs
    for subject in (ours, theirs):
        http.delete(subject.path)


def test_strictly_a_state_of_other_tensors_is_refused(halves: tuple[Subject, Subject]) -> None:
    ours, theirs = halves
    before = theirs.stands()
    for query in ({}, {"strict": "true"}):
        reply = put(theirs, *exported(ours), **query)
        assert_refused(reply, 422, "tensor-mismatch")
        assert sorted(reply.json()["missing"]) == ["new.exp_avg", "new.exp_avg_sq"]
        assert sorted(reply.json()["unknown"]) == ["old.exp_avg", "old.exp_avg_sq"]
    assert theirs.stands() == before


def test_in_part_what_fits_is_taken_and_the_rest_passed_over_by_name(halves: tuple[Subject, Subject]) -> None:
    ours, theirs = halves
    state, metadata = exported(ours)
    reply = put(theirs, state, metadata, strict="false")
    assert reply.status_code == 200, reply.text
    assert set(reply.json().pop("passed_over")) == {"old.exp_avg", "old.exp_avg_sq"}
    assert reply.json()["etag"] == "0.1"
    zeros = {f"new.{buffer}": torch.zeros(4, dtype=torch.float64) for buffer in ("exp_avg", "exp_avg_sq")}
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("old")}
    taken, said = exported(theirs)
    assert_equal(taken, {name: {**kept, **zeros}[name] for name in taken})
    assert (len(taken), said["step"]) == (6, "5")
    local = Local(lambda groups: torch.optim.AdamW(groups, lr=0.1), drawn(NEW, 1, torch.float64))
    for name, param in local.params.items():
        moments = {buffer: {**kept, **zeros}[f"{name}.{buffer}"].clone() for buffer in ("exp_avg", "exp_avg_sq")}
        local.optimizer.state[param] = {"step": torch.tensor(5.0), **moments}
    for step in range(5):
        grads = drawn(NEW, 20 + step, torch.float64)
        theirs.push(grads)
        local.step(grads)
    assert_close(theirs.pull(), local.weights)


def test_in_part_what_is_not_held_stays_as_it_is(halves: tuple[Subject, Subject]) -> None:
    ours, _ = halves
    state, metadata = exported(ours)
    part = {"bias.exp_avg": state["bias.exp_avg"] + 1}
    reply = put(ours, part, {"step": "7"}, strict="false")
    assert reply.json() == {"step": 5, "etag": "5.1", "passed_over": []}
    after, said = exported(ours)
    assert_equal(after, {**state, **part})
    assert (metadata["step"], said["step"]) == ("5", "7")


@pytest.mark.parametrize("optimizer", [name for name, row in OPTIMIZERS.items() if row.numbers])
def test_in_part_numbers_that_are_not_said_stay_as_they_are(http: httpx.Client, optimizer: str) -> None:
    subject = Subject.create(http, optimizer)
    subject.push()
    state, metadata = exported(subject)
    assert put(subject, state, {"step": "1"}, strict="false").status_code == 200
    assert exported(subject)[1]["numbers"] == metadata["numbers"]
    before = json.loads(metadata["numbers"])["default"]
    for name in before:
        said = {"step": "1", "numbers": json.dumps({"default": {name: 0.25}})}
        assert put(subject, {}, said, strict="false").status_code == 200
        before[name] = 0.25
        assert json.loads(exported(subject)[1]["numbers"]) == {"default": before}


def test_in_part_shapes_and_values_are_held_to_the_same_rules(halves: tuple[Subject, Subject]) -> None:
    ours, theirs = halves
    state, _ = exported(ours)
    before = theirs.stands()
    moments = {"bias.exp_avg_sq": state["bias.exp_avg_sq"]}
    said = {"step": "5"}
    reply = put(theirs, {"new.exp_avg": torch.ones(3)}, said, strict="false")
    assert_refused(reply, 422, "shape-mismatch", tensor="new.exp_avg")
    reply = put(theirs, {name: -tensor for name, tensor in moments.items()}, said, strict="false")
    assert_refused(reply, 422, "invalid-field", field="bias.exp_avg_sq")
    reply = put(theirs, {name: tensor * float("nan") for name, tensor in moments.items()}, said, strict="false")
    assert_refused(reply, 422, "nonfinite-params", tensors=["bias.exp_avg_sq"])
    assert_refused(put(theirs, moments, {}, strict="false"), 422, "invalid-field", field="step")
    assert_refused(put(theirs, moments, {**said, "optimizer": "sgd"}, strict="false"), 422, "invalid-field")
    assert theirs.stands() == before


# Buffers that do not begin at zero must begin where they do, also beside those that were brought.
BEGINNINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("rprop", "step_size", {"lr": 0.5}),
    ("adagrad", "sum", {"initial_accumulator_value": 0.25}),
    ("schedule_free_adamw", "z", {}),
    ("prodigy", "p0", {}),
]


@pytest.mark.parametrize(("optimizer", "buffer", "settings"), BEGINNINGS, ids=[row[0] for row in BEGINNINGS])
def test_in_part_tensors_that_are_not_held_begin_as_they_would_have(
    http: httpx.Client, optimizer: str, buffer: str, settings: dict[str, Any]
) -> None:
    ours, theirs = (Subject.create(http, optimizer, params=drawn(shapes, 1), **settings) for shapes in (OLD, NEW))
    for step in range(3):
        ours.push(drawn(OLD, 10 + step))
    state, metadata = exported(ours)
    assert put(theirs, state, metadata, strict="false").status_code == 200
    begin = {
        "step_size": torch.full((4,), settings.get("lr", 0.0)),
        "sum": torch.full((4,), settings.get("initial_accumulator_value", 0.0)),
        "z": drawn(NEW, 1)["new"],
        "p0": drawn(NEW, 1)["new"],
    }
    assert torch.equal(exported(theirs)[0][f"new.{buffer}"], begin[buffer])
    assert torch.equal(exported(theirs)[0][f"bias.{buffer}"], state[f"bias.{buffer}"])
    assert theirs.push(drawn(NEW, 20)).status_code == 200
    # What was brought is not begun again by the first step.
    if buffer == "p0":
        assert torch.equal(exported(theirs)[0]["bias.p0"], state["bias.p0"])
    if buffer == "step_size":
        assert not (exported(theirs)[0]["weight.step_size"] == 0.5).all()
