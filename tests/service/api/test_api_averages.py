"""Averages of the weights, kept beside them and pulled in their place, against torch's on the same trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
import pytorch_optimizer
import torch
from api_local import PRECISE, assert_close, gradients
from api_subject import GRADS, WEIGHTS, Subject, assert_equal, assert_refused, lists, receipt_of
from safetensors.torch import load
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 12


class Model(torch.nn.Module):
    """Weights that are given to it, for torch's averages to average."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in PRECISE.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def take(self, weights: Mapping[str, torch.Tensor]) -> Model:
        self.load_state_dict(weights)
        return self


def trajectory(subject: Subject, average: AveragedModel, due: Callable[[int], bool]) -> AveragedModel:
    """Step a session, and let torch's average see the weights after each step that is due."""
    model = Model()
    for step, grads in enumerate(gradients(STEPS), start=1):
        assert receipt_of(subject.push(grads))["step"] == step
        if due(step):
            average.update_parameters(model.take(subject.pull()))
    return average


@pytest.mark.parametrize("every", [1, 3])
def test_ema_is_torchs_on_the_same_trajectory(http: httpx.Client, every: int) -> None:
    subject = Subject.create(http, "sgd", params=PRECISE, lr=0.1, ema={"decay": 0.9, "every": every})
    average = AveragedModel(Model(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    trajectory(subject, average, lambda step: step % every == 0)
    assert_close(subject.pull(weights="ema"), average.module.state_dict())
    assert not torch.equal(subject.pull(weights="ema")["weight"], subject.pull()["weight"])


def test_ema_with_warmup_follows_its_formula(http: httpx.Client) -> None:
    subject = Subject.create(http, "sgd", params=PRECISE, lr=0.1, ema={"decay": 0.5, "warmup": True})
    average: dict[str, torch.Tensor] = {}
    for t, grads in enumerate(gradients(STEPS)):
        subject.push(grads)
        decay = min(0.5, (1 + t) / (10 + t))
        average = {n: decay * average[n] + (1 - decay) * p if t else p for n, p in subject.pull().items()}
    assert_close(subject.pull(weights="ema"), average)


@pytest.mark.parametrize(("start", "every"), [(0, 1), (5, 1), (4, 3)])
def test_swa_is_torchs_on_the_same_trajectory(http: httpx.Client, start: int, every: int) -> None:
    subject = Subject.create(http, "sgd", params=PRECISE, lr=0.1, swa={"start": start, "every": every})
    due = [step for step in range(1, STEPS + 1) if step >= start and (step - start) % every == 0]
    average = trajectory(subject, AveragedModel(Model()), due.__contains__)
    assert_close(subject.pull(weights="swa"), average.module.state_dict())


def test_both_averages_may_be_kept_and_current_weights_are_what_a_pull_is_of(http: httpx.Client) -> None:
    subject, plain = Subject.create(http, ema={"decay": 0.5}, swa={}), Subject.create(http)
    for grads in gradients(3, dtype=torch.float32):
        subject.push(grads)
        plain.push(grads)
    assert_equal(subject.pull(), plain.pull())
    assert_equal(subject.pull(weights="current"), plain.pull())
    assert not torch.equal(subject.pull(weights="ema")["bias"], subject.pull(weights="swa")["bias"])
    assert subject.info()["bytes"] - plain.info()["bytes"] == 2 * 8 * 4
    assert subject.info()["swa"] == {"start": 0, "every": 1}
    assert subject.info()["ema"] == {"decay": 0.5, "warmup": False, "every": 1}


def test_an_average_can_be_pulled_in_part_in_another_dtype_and_as_json(http: httpx.Client) -> None:
    subject = Subject.create(http, ema={"decay": 0.5})
    for _ in range(3):
        subject.push()
    whole = subject.pull(weights="ema")
    assert_equal(subject.pull(weights="ema", names="bias"), {"bias": whole["bias"]})
    halved = subject.pull(weights="ema", dtype="BF16")
    assert_equal(halved, {name: tensor.bfloat16() for name, tensor in whole.items()})
    reply = http.get(f"{subject.path}/params", params={"weights": "ema"}, headers={"Accept": "application/json"})
    assert reply.json() == {"params": lists(whole), "step": 3, "etag": "3.0"}
    assert reply.headers["etag"] == '"3.0"'


def test_pushes_that_are_no_step_do_not_enter_an_average(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"ema": {"decay": 0.5}, "nonfinite": "skip"}
    gathered = Subject.create(http, "sgd", accumulate={"steps": 2}, **fields)
    plain = Subject.create(http, "sgd", **fields)
    broken = {**GRADS, "bias": GRADS["bias"] * float("nan")}
    for _ in range(3):
        gathered.push()
        gathered.push(broken)
        gathered.push()
        plain.push()
    assert_equal(gathered.pull(weights="ema"), plain.pull(weights="ema"))


def test_buffers_and_frozen_tensors_in_an_average_are_the_current_ones(http: httpx.Client) -> None:
    body = {
        "optimizer": {"name": "sgd", "lr": 1.0},
        "params": {"w": [1.0, 2.0], "running_mean": [0.5], "fixed": [7.0]},
        "buffers": ["running_*"],
        "frozen": ["fixed"],
        "ema": {"decay": 0.5},
    }
    path = http.post("/v1/sessions", json=body).headers["location"]
    for step, mean in enumerate((3.0, 9.0)):
        push = {"grads": {"w": [1.0, 1.0]}, "buffers": {"running_mean": [mean]}}
        assert http.post(f"{path}/steps", json=push, headers={"If-Match": f'"{step}.0"'}).status_code == 200
    pulled = load(http.get(f"{path}/params", params={"weights": "ema"}).content)
    assert {name: tensor.tolist() for name, tensor in pulled.items()} == {
        "w": [-0.5, 0.5],
        "running_mean": [9.0],
        "fixed": [7.0],
    }


@pytest.mark.parametrize("which", ["ema", "swa"])
def test_an_average_that_is_not_kept_is_refused(http: httpx.Client, which: str) -> None:
    subject = Subject.create(http, **{{"ema": "swa", "swa": "ema"}[which]: {}})
    subject.push()
    before = subject.stands()
    reply = http.get(f"{subject.path}/params", params={"weights": which})
    assert_refused(reply, 422, "invalid-field", field="weights")
    assert which in reply.json()["detail"]
    assert subject.stands() == before


@pytest.mark.parametrize(("which", "spec"), [("ema", {"every": 3}), ("swa", {"start": 3})], ids=["ema", "swa"])
def test_an_average_of_nothing_yet_is_refused(http: httpx.Client, which: str, spec: dict[str, int]) -> None:
    subject = Subject.create(http, **{which: spec})
    for _ in range(3):
        reply = http.get(f"{subject.path}/params", params={"weights": which})
        assert_refused(reply, 422, "invalid-field", field="weights")
        assert "no step yet" in reply.json()["detail"]
        subject.push()
    assert_equal(subject.pull(weights=which), subject.pull())


def test_weights_of_an_unknown_name_are_refused(http: httpx.Client) -> None:
    subject = Subject.create(http)
    reply = http.get(f"{subject.path}/params", params={"weights": "best"})
    assert_refused(reply, 422, "invalid-field", field="weights")


def test_a_schedule_free_sgd_is_evaluated_as_the_reference(http: httpx.Client) -> None:
    groups = [{"name": "biases", "match": ["bias"], "lr": 0.1}]
    subject = Subject.create(http, "schedule_free_sgd", params=PRECISE, groups=groups, lr=0.5, momentum=0.8)
    params = {name: tensor.clone().requires_grad_() for name, tensor in PRECISE.items()}
    reference = pytorch_optimizer.ScheduleFreeSGD(
        [{"params": [params["weight"]]}, {"params": [params["bias"]], "lr": 0.1}], lr=0.5, momentum=0.8
    )
    reference.train()
    for grads in gradients(STEPS):
        subject.push(grads)
        for name, param in params.items():
            param.grad = grads[name].clone()
        reference.step()
    assert_close(subject.pull(), {name: param.detach() for name, param in params.items()})
    reference.eval()
    assert_close(subject.pull(weights="eval"), {name: param.detach() for name, param in params.items()})


def test_a_schedule_free_adamw_is_evaluated_at_the_mean_of_its_steps(http: httpx.Client) -> None:
    beta = 0.8
    subject = Subject.create(http, "schedule_free_adamw", params=PRECISE, lr=0.1, betas=[beta, 0.99])
    total = {name: torch.zeros_like(tensor) for name, tensor in PRECISE.items()}
    for grads in gradients(STEPS):
        subject.push(grads)
        state = load(http.get(f"{subject.path}/state").content)
        total = {name: t + state[f"{name}.z"] for name, t in total.items()}
    # All steps have the same weight, for lr is the same in all.
    assert_close(subject.pull(weights="eval"), {name: t / STEPS for name, t in total.items()})
    assert_close(subject.pull(), {n: (1 - beta) * state[f"{n}.z"] + beta * t / STEPS for n, t in total.items()})


@pytest.mark.parametrize("optimizer", ["schedule_free_sgd", "schedule_free_adamw"])
def test_before_the_first_step_weights_are_evaluated_as_they_are(http: httpx.Client, optimizer: str) -> None:
    assert_equal(Subject.create(http, optimizer).pull(weights="eval"), WEIGHTS)


def test_an_optimizer_that_evaluates_its_weights_says_so(http: httpx.Client) -> None:
    subject = Subject.create(http, "adam")
    reply = http.get(f"{subject.path}/params", params={"weights": "eval"})
    assert_refused(reply, 422, "invalid-field", field="weights")
    assert "adam" in reply.json()["detail"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ema": 0.9}, "ema"),
    ({"ema": True}, "ema"),
    ({"ema": {"decay": 1}}, "ema.decay"),
    ({"ema": {"decay": -0.1}}, "ema.decay"),
    ({"ema": {"decay": "0.9"}}, "ema.decay"),
    ({"ema": {"every": 0}}, "ema.every"),
    ({"ema": {"warmup": 1}}, "ema.warmup"),
    ({"ema": {"start": 1}}, "ema.start"),
    ({"swa": []}, "swa"),
    ({"swa": {"start": -1}}, "swa.start"),
    ({"swa": {"start": 1.5}}, "swa.start"),
    ({"swa": {"every": 0}}, "swa.every"),
    ({"swa": {"decay": 0.5}}, "swa.decay"),
]


@pytest.mark.parametrize(("fields", "field"), WRONG, ids=lambda case: str(case)[:50])
def test_an_average_that_is_none_is_refused_by_its_field(
    http: httpx.Client, fields: dict[str, Any], field: str
) -> None:
    sessions = http.get("/readyz").json()["sessions"]
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), **fields}
    assert_refused(http.post("/v1/sessions", json=body), 422, "invalid-field", field=field)
    assert http.get("/readyz").json()["sessions"] == sessions
