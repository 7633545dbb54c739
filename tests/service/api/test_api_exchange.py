"""Another optimizer for a session under way: what it carries over, what it drops, and that it says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from api_local import PRECISE, Local, assert_close, gradients
from api_subject import WEIGHTS, Subject, assert_refused, lists
from safetensors.torch import load

F64, NUMEL = 8, 8
# torch keeps the product of NAdam's momentum factors in float32.
NADAM_RTOL = 1e-7


@pytest.fixture
def adam(http: httpx.Client) -> Iterator[tuple[Subject, Local]]:
    """An Adam session with five steps behind it, and torch's Adam with the same."""
    subject = Subject.create(http, "adam", params=PRECISE, lr=0.1)
    local = Local(lambda groups: torch.optim.Adam(groups, lr=0.1))
    train(subject, local, 5)
    yield subject, local
    http.delete(subject.path)


def train(subject: Subject, local: Local, steps: int, *, seed: int = 0, rtol: float = 1e-9) -> None:
    """The same steps on both sides, which must come to the same."""
    for grads in gradients(steps, seed=seed):
        assert subject.push(grads).status_code == 200
        local.step(grads)
    assert_close(subject.pull(), local.weights, rtol=rtol)


def exchanged(subject: Subject, **body: Any) -> dict[str, Any]:
    reply = subject.http.put(f"{subject.path}/optimizer", json=body)
    assert reply.status_code == 200, reply.text
    report: dict[str, Any] = reply.json()
    assert reply.headers["etag"] == f'"{report["etag"]}"' == subject.etag()
    return report


def state_of(subject: Subject) -> dict[str, torch.Tensor]:
    return load(subject.http.get(f"{subject.path}/state").content)


def with_state(local: Local, optimizer: torch.optim.Optimizer) -> None:
    """Go on with another torch optimizer, which is given the state of the one before."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": local.optimizer.state_dict()["state"]})
    local.optimizer = optimizer


def groups(local: Local) -> list[dict[str, Any]]:
    return [{"params": [param]} for param in local.params.values()]


def test_adam_becomes_adamw_and_keeps_both_moments_and_their_count(adam: tuple[Subject, Local]) -> None:
    subject, local = adam
    before = state_of(subject)
    report = exchanged(subject, name="adamw", lr=0.2, weight_decay=0.3)
    assert report == {
        "step": 5,
        "etag": "5.1",
        "optimizer": "adamw",
        "carried": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
        "dropped": [],
        "dropped_hyperparameters": [],
    }
    after = state_of(subject)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with_state(local, torch.optim.AdamW(groups(local), lr=0.2, weight_decay=0.3))
    train(subject, local, 10, seed=1)


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_moments_that_are_kept_in_few_bytes_stay_to_the_bit(http: httpx.Client, state_dtype: str) -> None:
    subject, twin = (
        Subject.create(http, name, lr=0.1, weight_decay=0.0, state_dtype=state_dtype) for name in ("adam", "adamw")
    )
    for grads in gradients(5, dtype=torch.float32):
        subject.push(grads)
        twin.push(grads)
    held = subject.info()["bytes"]
    exchanged(subject, name="adamw", lr=0.1, weight_decay=0.0)
    assert subject.info()["bytes"] == held
    ours, theirs = state_of(subject), state_of(twin)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_adam_becomes_sgd_and_its_moments_are_dropped_and_their_memory_freed(adam: tuple[Subject, Local]) -> None:
    subject, local = adam
    held = subject.info()["bytes"]
    report = exchanged(subject, name="sgd", lr=0.05)
    assert (report["carried"], report["dropped"]) == ({}, ["exp_avg", "exp_avg_sq"])
    assert state_of(subject) == {}
    assert subject.info()["bytes"] == held - 2 * NUMEL * F64
    local.optimizer = torch.optim.SGD(groups(local), lr=0.05)
    train(subject, local, 5, seed=1)


def test_sgd_begins_with_the_momentum_that_it_is_told_to_carry(adam: tuple[Subject, Local]) -> None:
    subject, local = adam
    moments = {name: local.optimizer.state[param]["exp_avg"] for name, param in local.params.items()}
    report = exchanged(subject, name="sgd", lr=0.05, momentum=0.9, carry={"momentum_buffer": "exp_avg"})
    assert (report["carried"], report["dropped"]) == ({"momentum_buffer": "exp_avg"}, ["exp_avg_sq"])
    local.optimizer = torch.optim.SGD(groups(local), lr=0.05, momentum=0.9)
    for name, param in local.params.items():
        local.optimizer.state[param]["momentum_buffer"] = moments[name].clone()
    train(subject, local, 5, seed=1)


def test_a_buffer_may_begin_as_one_whose_place_another_takes(adam: tuple[Subject, Local]) -> None:
    subject, _ = adam
    before = state_of(subject)
    report = exchanged(subject, name="adamw", carry={"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"})
    assert (report["carried"], report["dropped"]) == ({"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}, [])
    after = state_of(subject)
    for name in WEIGHTS:
        assert torch.equal(after[f"{name}.exp_avg"], before[f"{name}.exp_avg_sq"])
        assert torch.equal(after[f"{name}.exp_avg_sq"], before[f"{name}.exp_avg"])


def test_moments_that_do_not_go_over_whole_are_dropped_and_counted_anew(adam: tuple[Subject, Local]) -> None:
    subject, local = adam
    report = exchanged(subject, name="adamw", lr=0.1, amsgrad=True)
    assert (report["carried"], report["dropped"]) == ({}, ["exp_avg", "exp_avg_sq"])
    local.optimizer = torch.optim.AdamW(groups(local), lr=0.1, amsgrad=True)
    train(subject, local, 5, seed=1)


def test_moments_do_not_go_to_an_optimizer_that_would_lack_the_numbers_beside_them(
    adam: tuple[Subject, Local],
) -> None:
    subject, local = adam
    report = exchanged(subject, name="nadam", lr=0.1)
    assert (report["carried"], report["dropped"]) == ({}, ["exp_avg", "exp_avg_sq"])
    local.optimizer = torch.optim.NAdam(groups(local), lr=0.1)
    train(subject, local, 5, seed=1, rtol=NADAM_RTOL)


def test_an_optimizer_that_is_exchanged_for_itself_goes_on_with_its_numbers(http: httpx.Client) -> None:
    subject = Subject.create(http, "nadam", params=PRECISE, lr=0.1)
    local = Local(lambda made: torch.optim.NAdam(made, lr=0.1))
    train(subject, local, 5, rtol=NADAM_RTOL)
    assert exchanged(subject, name="nadam", lr=0.01, momentum_decay=0.002)["dropped"] == []
    with_state(local, torch.optim.NAdam(groups(local), lr=0.01, momentum_decay=0.002))
    train(subject, local, 5, seed=1, rtol=NADAM_RTOL)
    exchanged(subject, name="adam", lr=0.1)
    assert "numbers" not in metadata_of(subject)
    with_state(local, torch.optim.Adam(groups(local), lr=0.1))
    train(subject, local, 5, seed=2, rtol=NADAM_RTOL)


def metadata_of(subject: Subject) -> str:
    content = subject.http.get(f"{subject.path}/state").content
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()


def test_an_optimizer_of_tensors_takes_over_and_gives_way_again(adam: tuple[Subject, Local]) -> None:
    subject, local = adam
    report = exchanged(subject, name="adafactor", lr=0.1)
    assert (report["carried"], report["dropped"]) == ({}, ["exp_avg", "exp_avg_sq"])
    local.optimizer = torch.optim.Adafactor(groups(local), lr=0.1)
    train(subject, local, 5, seed=1)
    assert exchanged(subject, name="adam", lr=0.1)["dropped"] == ["col_var", "row_var", "variance"]
    local.optimizer = torch.optim.Adam(groups(local), lr=0.1)
    train(subject, local, 5, seed=2)


def test_it_is_recorded_and_shown_and_raises_the_generation(adam: tuple[Subject, Local]) -> None:
    subject, _ = adam
    report = exchanged(subject, name="sgd", lr=0.05, momentum=0.9)
    assert (report["step"], report["etag"]) == (5, "5.1")
    (event,) = (event for event in subject.events() if event["kind"] == "optimizer_changed")
    told = ("optimizer", "carried", "dropped", "dropped_hyperparameters")
    assert (event["step"], event["detail"]) == (5, {name: report[name] for name in told})
    info = subject.info()
    assert {name: info["optimizer"][name] for name in ("name", "lr", "momentum")} == {
        "name": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
    }
    assert info["hyperparameters"]["default"]["momentum"] == 0.9
    listed = subject.http.get("/v1/sessions", params={"limit": 1000}).json()["sessions"]
    assert [row["optimizer"]["name"] for row in listed if row["id"] == info["id"]] == ["sgd"]


def test_groups_keep_what_the_new_optimizer_has_too_and_are_told_what_they_lose(http: httpx.Client) -> None:
    own = [{"name": "own", "match": ["bias"], "lr": 0.5, "weight_decay": 0.0, "betas": [0.5, 0.5]}]
    subject = Subject.create(http, "adamw", groups=own, lr=0.1)
    assert exchanged(subject, name="sgd", lr=1.0)["dropped_hyperparameters"] == ["own.betas"]
    hyper = subject.info()["hyperparameters"]
    assert (hyper["own"]["lr"], hyper["own"]["weight_decay"], hyper["default"]["lr"]) == (0.5, 0.0, 1.0)
    assert "betas" not in hyper["own"]


@pytest.mark.usefixtures("on_host")
def test_memory_of_a_buffer_that_was_kept_though_not_needed_is_freed_too(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", momentum=0.9)
    subject.push()
    http.patch(subject.path, json={"optimizer": {"momentum": 0.0}})
    exchanged(subject, name="adamw")
    body = {"optimizer": {"name": "adamw"}, "params": lists(WEIGHTS)}
    assert subject.info()["bytes"] == http.post("/v1/cost", json=body).json()["bytes"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    (
        {"name": "sgd", "momentum": 0.9, "carry": {"momentum_buffer": "momentum"}},
        "invalid-field",
        "carry.momentum_buffer",
    ),
    ({"name": "sgd", "carry": {"momentum_buffer": "exp_avg"}}, "invalid-field", "carry.momentum_buffer"),
    ({"name": "adamw", "carry": {"exp_avg": "exp_avg", "m": "exp_avg"}}, "invalid-field", "carry.m"),
    ({"name": "adafactor", "carry": {"row_var": "exp_avg_sq"}}, "invalid-field", "carry.row_var"),
    ({"name": "adamw", "carry": {"exp_avg": 1}}, "invalid-field", "carry.exp_avg"),
    ({"name": "adamw", "carry": ["exp_avg"]}, "invalid-field", "carry"),
    ({"name": "adamz"}, "invalid-field", "optimizer.name"),
    ({"lr": 0.1}, "invalid-field", "name"),
    ({"name": "adamw", "lr": -0.1}, "invalid-hyperparameter", "optimizer.lr"),
    ({"name": "adamw", "momentum": 0.1}, "invalid-hyperparameter", "optimizer.momentum"),
    ({"name": "muon"}, "invalid-field", "tensors"),
]


@pytest.mark.parametrize(("body", "slug", "field"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_what_cannot_be_exchanged_is_refused_by_name(
    adam: tuple[Subject, Local], body: dict[str, Any], slug: str, field: str
) -> None:
    subject, _ = adam
    before = subject.stands()
    reply = subject.http.put(f"{subject.path}/optimizer", json=body)
    assert_refused(reply, 422, slug, field=field)
    assert subject.stands() == before


def test_an_optimizer_that_cannot_keep_its_state_in_few_bytes_is_refused(http: httpx.Client) -> None:
    subject = Subject.create(http, "adamw", state_dtype="8bit")
    before = subject.stands()
    reply = http.put(f"{subject.path}/optimizer", json={"name": "adafactor"})
    assert_refused(reply, 422, "invalid-field", field="state_dtype")
    assert subject.stands() == before


def test_a_stale_if_match_changes_nothing(adam: tuple[Subject, Local]) -> None:
    subject, _ = adam
    before = subject.stands()
    for stale in ('"4"', '"5.1"'):
        reply = subject.http.put(f"{subject.path}/optimizer", json={"name": "sgd"}, headers={"If-Match": stale})
        assert_refused(reply, 412, "stale-step")
    assert subject.stands() == before
    reply = subject.http.put(f"{subject.path}/optimizer", json={"name": "sgd"}, headers={"If-Match": '"5.0"'})
    assert reply.json()["etag"] == "5.1"
    assert_refused(subject.push(if_match='"5.0"'), 412, "stale-step")


def test_a_change_of_hyperparameters_after_it_is_of_the_new_optimizer(adam: tuple[Subject, Local]) -> None:
    subject, _ = adam
    exchanged(subject, name="sgd", lr=0.05)
    assert subject.http.patch(subject.path, json={"optimizer": {"lr": 0.5}}).json()["optimizer"]["lr"] == 0.5
    reply = subject.http.patch(subject.path, json={"optimizer": {"betas": [0.5, 0.5]}})
    assert_refused(reply, 422, "invalid-hyperparameter", field="optimizer.betas")


@pytest.mark.parametrize(
    ("old", "hyper", "new"),
    [
        ("sgd", {"momentum": 0.9}, "lars"),
        ("muon", {}, "lars"),
        ("prodigy", {}, "adam"),
        ("soap", {}, "adamw"),
        ("adan", {}, "schedule_free_adamw"),
    ],
)
def test_buffers_of_one_name_and_another_meaning_do_not_go_over(
    http: httpx.Client, old: str, hyper: dict[str, Any], new: str
) -> None:
    matrix = {"weight": torch.arange(6.0).view(2, 3) - 2}
    subject = Subject.create(http, old, params=matrix, **hyper)
    subject.push({"weight": torch.ones(2, 3)})
    assert {name.rpartition(".")[2] for name in state_of(subject)}
    assert exchanged(subject, name=new)["carried"] == {}
    assert state_of(subject) == {}


def test_an_optimizer_that_is_given_all_of_its_moments_goes_on_with_their_count(adam: tuple[Subject, Local]) -> None:
    subject, _ = adam
    carry = {"exp_avg": "exp_avg", "exp_avg_slow": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
    assert exchanged(subject, name="ademamix", carry=carry)["carried"] == carry
    reply = subject.http.get(f"{subject.path}/state")
    header = reply.content[8 : 8 + int.from_bytes(reply.content[:8], "little")]
    assert json.loads(header)["__metadata__"]["step"] == "5"


def test_a_buffer_that_a_new_schedule_asks_for_can_be_carried_before_the_first_push_under_it(
    http: httpx.Client,
) -> None:
    subject = Subject.create(http, "sgd", lr=0.1)
    subject.push()
    cyclic = {"name": "cyclic", "base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2}
    assert http.patch(subject.path, json={"schedule": cyclic}).status_code == 200
    report = exchanged(subject, name="adagrad", carry={"sum": "momentum_buffer"})
    assert report["carried"] == {"sum": "momentum_buffer"}
    assert not state_of(subject)
    assert subject.push().status_code == 200


def test_a_schedule_that_began_under_way_goes_on_under_the_new_optimizer(http: httpx.Client) -> None:
    subject = Subject.create(http, "adam", lr=1.0)
    subject.push()
    assert http.patch(subject.path, json={"schedule": {"name": "exponential", "gamma": 0.5}}).status_code == 200
    subject.push()
    exchanged(subject, name="sgd", lr=8.0)
    subject.push()
    assert [row["lr"] for row in subject.steps()] == [1, 1, 4]
