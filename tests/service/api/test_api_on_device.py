"""Sessions on a GPU, or on what poses as one, beside sessions of the same server in the host's memory.

`pytest tests/service/api --device posing` (or `cuda`) puts every session of the other tests there too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api_subject import SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, lists, receipt_of
from openapi_contract import Contract
from safetensors.torch import load

from optimd_service.api.problems import answer
from raw_safetensors import tensor_file
from reaching import http_client
from server_process import PosingServer, ServerProcess

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"lr": 0.01, "amsgrad": True},
    "adamw": {"lr": 0.01},
    "adagrad": {"lr": 0.1},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "lion": {"lr": 0.001, "weight_decay": 0.1},
}
GENERATOR = torch.Generator().manual_seed(0)
# More than two rounds of the buffers between socket and device, the last of them short.
LARGE = {"a": torch.randn(3000, 1000, generator=GENERATOR), "b": torch.randn(4_500_001, generator=GENERATOR)}
ON_CUDA = {"device": "cuda"}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module", params=[PosingServer, pytest.param(ServerProcess, marks=NEEDS_CUDA)])
def gpu(
    request: pytest.FixtureRequest, contract: Contract, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a server that has a GPU."""
    data: Path = tmp_path_factory.mktemp("gpu") / "data"
    with request.param(data) as server, http_client(server.url, event_hooks={"response": [contract.check]}) as client:
        yield client


def pair(gpu: httpx.Client, optimizer: str, **description: Any) -> tuple[Subject, Subject]:
    """Two sessions that are the same, but that the second is in the host's memory."""
    return (
        Subject.create(gpu, optimizer, storage=ON_CUDA, **description),
        Subject.create(gpu, optimizer, storage={"device": "cpu"}, **description),
    )


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-6), name


def gradients(weights: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_a_session_in_the_hosts_memory(gpu: httpx.Client, optimizer: str) -> None:
    ours, theirs = pair(gpu, optimizer, **OPTIMIZERS[optimizer], clip={"max_norm": 2.0}, ema={"decay": 0.5})
    assert ours.info()["storage"] == {"backend": "device", "device": "cuda"}
    for step in range(10):
        grads = gradients(WEIGHTS, step)
        receipt, other = (receipt_of(subject.push(grads, loss="1.5")) for subject in (ours, theirs))
        for name in ("grad_norm", "clip_scale", "update_norm", "param_norm"):
            assert receipt[name] == pytest.approx(other[name], rel=1e-5), name
    assert_close(ours.pull(), theirs.pull())
    assert_close(ours.pull(weights="ema"), theirs.pull(weights="ema"))
    assert_close(*(load(gpu.get(f"{subject.path}/state").content) for subject in (ours, theirs)))
    assert [row["step"] for row in ours.steps()] == list(range(1, 11))


@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_step_comes_and_goes_whole(gpu: httpx.Client, wire: torch.dtype) -> None:
    ours, theirs = pair(gpu, "sgd", params=LARGE, lr=0.5)
    grads = {name: tensor.to(wire) for name, tensor in gradients(LARGE, 1).items()}
    replies = [subject.push(grads, pull="bf16" if wire is torch.bfloat16 else "f32") for subject in (ours, theirs)]
    receipt, other = map(receipt_of, replies)
    assert receipt["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-9)
    pulled = ours.pull()
    assert_close(pulled, theirs.pull())
    assert_close(pulled, {name: LARGE[name] - 0.5 * grads[name].float() for name in LARGE})
    assert len(replies[0].content) == pytest.approx(len(replies[1].content), abs=64)
    assert_equal(load(replies[0].content), {name: tensor.to(wire) for name, tensor in pulled.items()})


def test_weights_that_leave_while_they_are_stepped_are_the_steps(gpu: httpx.Client) -> None:
    subject = Subject.create(gpu, "adamw", params=LARGE, storage=ON_CUDA)
    for step in range(3):
        headers = {**SAFETENSORS, "Idempotency-Key": f"k{step}"}
        content = tensor_file(gradients(LARGE, step))
        reply = gpu.post(f"{subject.path}/steps", content=content, headers=headers, params={"receipt": "last"})
        assert reply.status_code == 200, reply.text[:500]
        length = int.from_bytes(reply.content[:8], "little")
        spans, payload = json.loads(reply.content[8 : 8 + length]), bytearray(reply.content[8 + length :])
        for name, tensor in subject.pull().items():
            start, stop = spans[name]["data_offsets"]
            assert torch.equal(torch.frombuffer(payload[start:stop], dtype=torch.float32), tensor.reshape(-1)), name


def test_weights_and_state_are_put_and_taken_away_whole(gpu: httpx.Client) -> None:
    ours, theirs = pair(gpu, "adamw", params=LARGE)
    for step in range(2):
        theirs.push(gradients(LARGE, step), pull="none")
    weights, state = gpu.get(f"{theirs.path}/params").content, gpu.get(f"{theirs.path}/state").content
    assert gpu.put(f"{ours.path}/params", content=weights, headers=SAFETENSORS).status_code == 200
    assert gpu.put(f"{ours.path}/state", content=state, headers=SAFETENSORS).status_code == 200
    assert_equal(ours.pull(), theirs.pull())
    assert_equal(load(gpu.get(f"{ours.path}/state").content), load(state))
    replaced = gpu.put(f"{ours.path}/params", json={"params": lists(WEIGHTS)})
    assert_refused(replaced, 422, "tensor-mismatch")


REFUSED = [
    ("soap", {}, "optimizer.name"),
    ("nadam", {}, "optimizer.name"),
    ("adamw", {"state_dtype": "bf16"}, "state_dtype"),
    ("adamw", {"state_dtype": "8bit"}, "state_dtype"),
    ("adamw", {"centralize": True}, "centralize"),
    ("adamw", {"clip": {"agc": 0.01}}, "clip.agc"),
    ("adamw", {"wire": {"params": "BF16", "difference": True}}, "wire.difference"),
]


@pytest.mark.parametrize(("optimizer", "asked", "field"), REFUSED)
def test_what_a_device_does_not_do_is_refused_by_its_field(
    gpu: httpx.Client, optimizer: str, asked: dict[str, Any], field: str
) -> None:
    before = gpu.get("/v1/sessions").json()
    body = {"optimizer": {"name": optimizer}, "params": lists(WEIGHTS), "storage": ON_CUDA, **asked}
    reply = gpu.post("/v1/sessions", json=body)
    assert_refused(reply, 422, "invalid-field", field=field)
    assert "storage.device cpu" in reply.json()["detail"]
    assert gpu.get("/v1/sessions").json() == before
    assert gpu.post("/v1/sessions", json={**body, "storage": {"device": "cpu"}}).status_code == 201


@pytest.fixture
def on_gpu(gpu: httpx.Client) -> Subject:
    subject = Subject.create(gpu, "adamw", storage=ON_CUDA)
    subject.push()
    return subject


@pytest.fixture
def unmoved(on_gpu: Subject) -> Iterator[None]:
    """The session is the same after the test as before it, to the bit."""
    before = on_gpu.stands()
    yield
    assert on_gpu.stands() == before


@pytest.mark.usefixtures("unmoved")
def test_a_change_to_what_a_device_does_not_do_is_refused(on_gpu: Subject) -> None:
    reply = on_gpu.http.patch(on_gpu.path, json={"clip": {"agc": 0.01}, "name": "new"})
    assert_refused(reply, 422, "invalid-field", field="clip.agc")
    reply = on_gpu.http.put(f"{on_gpu.path}/optimizer", json={"name": "lamb"})
    assert_refused(reply, 422, "invalid-field", field="optimizer.name")


@pytest.mark.usefixtures("unmoved")
def test_rows_are_refused(gpu: httpx.Client, on_gpu: Subject) -> None:
    subject = Subject.create(gpu, "sgd", storage=ON_CUDA)
    rows = {"weight": {"rows": [1], "values": [[1.0, 2.0, 3.0]]}, "bias": [0.0, 0.0]}
    reply = gpu.post(f"{subject.path}/steps", json={"grads": rows}, headers={"Idempotency-Key": "rows"})
    assert_refused(reply, 422, "invalid-field", field="weight")
    assert_equal(subject.pull(), WEIGHTS)


def test_its_bytes_are_told_before_it_is_created(gpu: httpx.Client, http: httpx.Client) -> None:
    body = {"optimizer": {"name": "adamw"}, "params": lists(WEIGHTS), "storage": ON_CUDA}
    held = gpu.post("/v1/sessions", json=body).json()["bytes"]
    for client in (gpu, http):  # also by a server that has no such device
        assert client.post("/v1/cost", json=body).json()["bytes"] == held


def test_a_session_that_the_device_has_no_room_for_is_refused(gpu: httpx.Client) -> None:
    body = {"optimizer": {"name": "adamw"}, "tensors": [{"name": "w", "shape": [2**36]}], "storage": ON_CUDA}
    reply = gpu.post("/v1/sessions", json=body)
    assert_refused(reply, 507, "insufficient-memory")
    assert reply.json()["needed_bytes"] >= 16 * 2**36 > reply.json()["available_bytes"] > 0


def test_a_call_that_finds_the_device_full_is_told_so() -> None:
    reply = answer(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB at 0x7f"))
    assert reply.status_code == 507
    problem = json.loads(bytes(reply.body))
    assert problem["type"] == "/problems/insufficient-memory"
    assert "0x7f" not in problem["detail"]


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:100", "cuda:01", "CUDA", "cuda:0\n", ""])
def test_a_device_of_no_such_name_is_refused(gpu: httpx.Client, device: str) -> None:
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "storage": {"device": device}}
    assert_refused(gpu.post("/v1/sessions", json=body), 422, "invalid-field", field="storage.device")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.usefixtures("on_host")
def test_a_device_that_the_server_does_not_have_is_refused(http: httpx.Client, device: str) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    body = {"optimizer": {"name": "sgd"}, "params": lists(WEIGHTS), "storage": {"device": device}}
    reply = http.post("/v1/sessions", json=body)
    assert_refused(reply, 422, "invalid-field", field="storage.device")
    assert "cpu" in reply.json()["detail"]
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before
