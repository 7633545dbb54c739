"""What a killed server finds again: whatever was done to a session, it stands to the bit where it stood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from api_parts import complete, send
from api_subject import GRADS, JSON, SAFETENSORS, WEIGHTS, Subject, Tensors, lists, receipt_of
from test_api_segments import CUT, in_segments
from test_api_segments import WEIGHTS as LARGE

from crashing_server import CrashingServer
from optimd_service.optim.catalogue import OPTIMIZERS
from raw_safetensors import tensor_file

pytestmark = pytest.mark.usefixtures("on_host")

Life = Callable[[Subject], Any]
MOMENTUM = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
BATCH_NORM = {"weight": WEIGHTS["weight"], "running_mean": torch.tensor([0.5, 1.5])}
TABLE = {"emb": torch.randn(30, 4, generator=torch.Generator().manual_seed(0))}
ROWS = {"emb#rows": torch.tensor([7, 2, 29]), "emb#values": torch.ones(3, 4)}
MATRICES = {"weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(0))}
COMPRESSED = {"weight": torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(40)}


def like(tensors: Tensors, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def pushes(count: int = 4, tensors: Tensors = WEIGHTS, **said: Any) -> Life:
    def live(subject: Subject) -> None:
        for seed in range(count):
            receipt_of(subject.push(like(tensors, seed), key=f"key-{seed}", loss=str(1 / (1 + seed)), **said))

    return live


def after(*lives: Life) -> Life:
    def live(subject: Subject) -> None:
        for one in lives:
            one(subject)

    return live


def done(method: str, where: str, **said: Any) -> Life:
    def live(subject: Subject) -> None:
        reply = subject.http.request(method, f"{subject.path}{where}", **said)
        assert reply.status_code in {200, 201, 204}, reply.text

    return live


def put_whole_state(subject: Subject) -> None:
    state = subject.http.get(f"{subject.path}/state").content
    done("PUT", "/state", content=state, headers=SAFETENSORS)(subject)


def put_some_state(subject: Subject) -> None:
    content = tensor_file({"weight.exp_avg": torch.ones(2, 3)}, {"step": "9"})
    done("PUT", "/state?strict=false", content=content, headers=SAFETENSORS)(subject)


def overflowing(subject: Subject) -> None:
    pushes(2)(subject)
    for key in ("a", "b"):
        subject.push({**GRADS, "bias": torch.tensor([float("inf"), 0.0])}, key=key)
    pushes(5)(subject)


def in_json(subject: Subject) -> None:
    body = {"grads": lists(GRADS), "loss": 0.5, "num_examples": 8, "worker": "w"}
    headers = {**JSON, "Idempotency-Key": "json"}
    assert subject.http.post(f"{subject.path}/steps", json=body, headers=headers).status_code == 200


def in_parts(subject: Subject) -> None:
    for _ in range(2):
        send(subject, {"weight": GRADS["weight"]})
        receipt_of(complete(subject, {"bias": GRADS["bias"]}))
    send(subject, {"weight": GRADS["weight"]})  # of which no more comes


def in_two_segments(subject: Subject) -> None:
    with ThreadPoolExecutor(2) as threads:
        receipt_of(in_segments(threads, subject, CUT)[0])


def rolled_back(subject: Subject) -> None:
    pushes(6)(subject)
    done("POST", "/rollback", json={"step": 3})(subject)
    for seed in range(10, 13):
        receipt_of(subject.push(like(WEIGHTS, seed)))


def rolled_back_to_what_was_left(subject: Subject) -> None:
    pushes(3)(subject)
    done("POST", "/checkpoints", json={"label": "best"})(subject)
    receipt_of(subject.push(like(WEIGHTS, 7)))
    done("POST", "/rollback", json={"step": 1})(subject)
    receipt_of(subject.push(like(WEIGHTS, 8)))
    done("POST", "/rollback", json={"label": "best"})(subject)
    receipt_of(subject.push(like(WEIGHTS, 9)))


def with_buffers(subject: Subject) -> None:
    receipt_of(subject.push({"weight": GRADS["weight"], "running_mean": torch.tensor([2.0, 3.0])}))
    receipt_of(subject.push({"weight": GRADS["weight"]}))


LIVES: Mapping[str, tuple[Mapping[str, Any], Life]] = {
    **{f"optimizer-{name}": ({"optimizer": name, "params": MATRICES}, pushes(5, MATRICES)) for name in OPTIMIZERS},
    "accumulated": ({"accumulate": {"steps": 3}}, pushes(8)),
    "loss scale": ({"loss_scale": {"init_scale": 8.0, "growth_interval": 2}}, overflowing),
    "skipped": ({"nonfinite": "skip"}, overflowing),
    "zeroed": ({"nonfinite": "zero"}, overflowing),
    "clipped": ({"clip": {"max_norm": 0.5}}, pushes()),
    "clipped by tensor": ({"clip": {"max_norm": 0.5, "per": "tensor"}}, pushes()),
    "clipped by value": ({"clip": {"clip_value": 0.25}}, pushes()),
    "clipped adaptively": ({"clip": {"agc": 0.01}}, pushes()),
    "centralized, upwards": ({"centralize": True, "maximize": True}, pushes()),
    "rows": ({"optimizer": "sparse_adam", "params": TABLE}, lambda subject: receipt_of(subject.push(ROWS))),
    "rows and a dense part": (
        {"optimizer": "adagrad", "params": {"bias": torch.zeros(2), **TABLE}},
        lambda subject: receipt_of(subject.push({"bias": torch.ones(2), **ROWS})),
    ),
    "buffers": ({"params": BATCH_NORM, "buffers": ["running*"], **MOMENTUM}, with_buffers),
    "JSON": ({}, in_json),
    "parts": ({}, in_parts),
    "segments": ({"params": LARGE}, in_two_segments),
    "bfloat16 on the wire": (
        {},
        lambda subject: receipt_of(subject.push({name: grad.bfloat16() for name, grad in GRADS.items()})),
    ),
    "bfloat16 on the wire, clipped, large": (
        {"params": {"w": torch.zeros(600_000)}, "clip": {"max_norm": 1.0}},
        lambda subject: receipt_of(subject.push({"w": like({"w": torch.zeros(600_000)}, 0)["w"].bfloat16()})),
    ),
    "bfloat16 on the wire, large": (
        {"params": {"w": torch.zeros(600_000)}},
        lambda subject: receipt_of(subject.push({"w": like({"w": torch.zeros(600_000)}, 0)["w"].bfloat16()})),
    ),
    "gradients kept in bfloat16": ({"grad_dtype": "BF16"}, pushes()),
    "moments in bfloat16": ({"params": COMPRESSED, "state_dtype": "bf16"}, pushes(4, COMPRESSED)),
    "moments in a byte": ({"params": COMPRESSED, "state_dtype": "8bit"}, pushes(4, COMPRESSED)),
    "averages": ({"ema": {"decay": 0.9}, "swa": {"start": 2, "every": 1}}, pushes(5)),
    "a schedule": ({"schedule": {"name": "cosine", "warmup_steps": 2, "total_steps": 9}}, pushes()),
    "a plateau": ({"schedule": {"name": "reduce_on_plateau", "patience": 0}}, pushes(5)),
    "hyperparameters of one step": ({}, pushes(hyperparameters='{"lr": 0.5, "groups": {"default": {"eps": 0.1}}}')),
    "groups": ({"groups": [{"name": "biases", "match": ["bias"], "lr": 0.3}]}, pushes()),
    "F64": ({"params": {name: tensor.double() for name, tensor in WEIGHTS.items()}}, pushes()),
    "differences": ({"wire": {"difference": True, "params": "BF16"}}, pushes(2, pull="bf16")),
    "changed": (
        {},
        after(pushes(2), done("PATCH", "", json={"optimizer": {"lr": 0.9}, "clip": {"max_norm": 1.0}, "name": "b"})),
    ),
    "a new schedule": (
        {},
        after(pushes(2), done("PATCH", "", json={"schedule": {"name": "exponential", "gamma": 0.5}}), pushes(5)),
    ),
    "another optimizer": (
        {},
        after(
            pushes(3),
            done("PUT", "/optimizer", json={"name": "sgd", "momentum": 0.9, "carry": {"momentum_buffer": "exp_avg"}}),
            lambda subject: receipt_of(subject.push(GRADS)),
        ),
    ),
    "weights put": (
        {},
        after(pushes(2), done("PUT", "/params", content=tensor_file(like(WEIGHTS, 5)), headers=SAFETENSORS), pushes(3)),
    ),
    "state put": ({}, after(pushes(2), put_whole_state, lambda subject: receipt_of(subject.push(GRADS)))),
    "some state put": ({}, after(pushes(2), put_some_state, lambda subject: receipt_of(subject.push(GRADS)))),
    "rolled back": ({}, rolled_back),
    "rolled back to what was left": ({}, rolled_back_to_what_was_left),
    "a label removed": (
        {"checkpoint": {"keep": 1}},
        after(
            pushes(3),
            done("POST", "/checkpoints", json={"label": "a"}),
            done("DELETE", "/checkpoints/a"),
            lambda subject: receipt_of(subject.push(GRADS)),
        ),
    ),
    "a checkpoint of each step": ({"checkpoint": {"steps": 1, "keep": 1}}, pushes(6)),
}


class Survivors:
    """Sessions of every life, before the server was killed and after it began again."""

    def __init__(self, server: CrashingServer) -> None:
        self.subjects = {name: born(server, description) for name, (description, _) in LIVES.items()}
        for name, (_, live) in LIVES.items():
            live(self.subjects[name])
        forked = self.subjects["a schedule"].http.post(f"{self.subjects['a schedule'].path}/fork", json={"step": 2})
        self.subjects["a fork"] = Subject(server.http, forked.headers["Location"])
        receipt_of(self.subjects["a fork"].push(GRADS))
        self.before = {name: stands(subject) for name, subject in self.subjects.items()}
        server.start_again()
        self.subjects = {name: Subject(server.http, subject.path) for name, subject in self.subjects.items()}
        self.after = {name: stands(subject) for name, subject in self.subjects.items()}


def born(server: CrashingServer, description: Mapping[str, Any]) -> Subject:
    said = dict(description)
    optimizer, own = said.pop("optimizer", "adam"), ("durability", "checkpoint")
    kept = {name: said.pop(name) for name in own if name in said}
    if not kept:
        return Subject.create(server.http, optimizer, **said)
    params = {name: tensor.tolist() for name, tensor in WEIGHTS.items()}
    reply = server.http.post("/v1/sessions", json={"optimizer": {"name": optimizer}, "params": params, **kept})
    assert reply.status_code == 201, reply.text
    return Subject(server.http, reply.headers["Location"])


def stands(subject: Subject) -> dict[str, Any]:
    averages = {}
    for which in ("ema", "swa"):
        if subject.info()[which] is not None:
            averages[which] = subject.http.get(f"{subject.path}/params?weights={which}").content
    return {**subject.stands(), **averages}


@pytest.fixture(scope="module")
def survivors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with CrashingServer(tmp_path_factory.mktemp("recovery") / "data") as server:
        yield Survivors(server)


@pytest.mark.parametrize("life", [*LIVES, "a fork"])
def test_a_killed_server_finds_a_session_as_it_stood(survivors: Survivors, life: str) -> None:
    before, found = survivors.before[life], survivors.after[life]
    assert before["steps"]
    for what, was in before.items():
        assert found[what] == was, f"{what}: {shown(found[what])} was {shown(was)}"


def shown(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, bytes) else value[-200:].hex()


def test_a_push_that_comes_again_after_the_crash_is_known(survivors: Survivors) -> None:
    subject = survivors.subjects["clipped"]
    again = receipt_of(subject.push(like(WEIGHTS, 3), key="key-3", loss="0.25"))
    assert again["duplicate"]
    assert {**subject.steps()[3], "duplicate": True}.items() >= again.items()
    refused = subject.push(like(WEIGHTS, 4), key="key-3", loss="0.25")
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/key-reused")
    assert subject.info()["step"] == 4


@pytest.mark.parametrize("life", ["optimizer-adam", "accumulated", "loss scale", "moments in a byte", "a plateau"])
def test_a_session_goes_on_as_it_would_have_without_the_crash(survivors: Survivors, life: str) -> None:
    subject, (description, live) = survivors.subjects[life], LIVES[life]
    other = Subject.create(subject.http, **{"optimizer": "adam", **description})
    live(other)
    tensors = description.get("params", WEIGHTS)
    for one in (subject, other):
        for seed in range(20, 24):
            receipt_of(one.push(like(tensors, seed), key=f"later-{seed}", loss="0.5"))
    mine, theirs = subject.stands(), other.stands()
    assert mine["params"] == theirs["params"]
    assert mine["state"] == theirs["state"]
