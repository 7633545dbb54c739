"""Pushes of rows: what they step, what they leave alone, and what is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import torch
from api_subject import JSON, SAFETENSORS, Subject, assert_equal, assert_refused, lists, receipt_of
from safetensors.torch import load
from torch import Tensor

from raw_safetensors import tensor_file

HEIGHT, WIDTH = 30, 4
TABLE = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
BIAS = torch.tensor([0.5, -0.5])
TABLES = {"emb": TABLE}
MIXED = {"bias": BIAS, "emb": TABLE}
ROWS = torch.tensor([7, 2, 29, 7])
VALUES = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
OTHERS = [row for row in range(HEIGHT) if row not in {7, 2, 29}]


def by_rows(rows: Tensor = ROWS, values: Tensor = VALUES) -> dict[str, Tensor]:
    return {"emb#rows": rows, "emb#values": values}


def dense(rows: Tensor = ROWS, values: Tensor = VALUES) -> Tensor:
    return torch.zeros(HEIGHT, WIDTH).index_add_(0, rows, values)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(HEIGHT, (9,), generator=generator), torch.randn(9, WIDTH, generator=generator)


def state_of(subject: Subject) -> dict[str, Tensor]:
    return load(subject.http.get(f"{subject.path}/state").content)


def test_fifty_pushes_of_rows_end_where_torchs_sparse_adam_ends(http: httpx.Client) -> None:
    settings = {"lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-6}
    subject = Subject.create(http, "sparse_adam", params=TABLES, **settings)
    wanted = torch.nn.Parameter(TABLE.clone())
    reference = torch.optim.SparseAdam([wanted], lr=0.01, betas=(0.8, 0.99), eps=1e-6)
    for seed in range(50):
        rows, values = batch(seed)
        receipt = receipt_of(subject.push(by_rows(rows, values)))
        wanted.grad = torch.sparse_coo_tensor(rows[None], values, TABLE.shape, check_invariants=True)
        reference.step()
    assert receipt["step"] == 50
    torch.testing.assert_close(subject.pull()["emb"], wanted.detach(), rtol=0, atol=1e-6)
    for name, buffer in state_of(subject).items():
        torch.testing.assert_close(buffer, reference.state[wanted][name.removeprefix("emb.")], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sparse_adam", "sgd", "adagrad"])
def test_no_byte_of_another_row_or_of_its_state_is_written(http: httpx.Client, optimizer: str) -> None:
    subject = Subject.create(http, optimizer, params=TABLES)
    subject.push({"emb": torch.ones(HEIGHT, WIDTH)})
    before = {**subject.pull(), **state_of(subject)}
    subject.push(by_rows())
    for name, after in {**subject.pull(), **state_of(subject)}.items():
        assert torch.equal(after[OTHERS].view(torch.uint8), before[name][OTHERS].view(torch.uint8)), name
        assert (after[[2, 7, 29]] != before[name][[2, 7, 29]]).all(), name


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", {"lr": 0.1}), ("adagrad", {}), ("adagrad", {"initial_accumulator_value": 0.5, "lr_decay": 0.1})],
    ids=str,
)
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"clip": {"max_norm": 0.5}},
        {"clip": {"max_norm": 0.5, "per": "tensor"}},
        {"clip": {"clip_value": 0.25}},
        {"clip": {"agc": 0.01}},
        {"centralize": True},
        {"maximize": True},
        {"loss_scale": {"init_scale": 8.0}},
        {"schedule": {"name": "exponential", "gamma": 0.5}},
        {"ema": {"decay": 0.5}},
        {"accumulate": {"steps": 1}},
        {"grad_dtype": "BF16"},
    ],
    ids=str,
)
def test_rows_step_as_the_whole_tensor_would_with_zeros_in_the_others(
    http: httpx.Client, optimizer: str, settings: Mapping[str, Any], policy: Mapping[str, Any]
) -> None:
    sparse, whole = (Subject.create(http, optimizer, params=MIXED, **settings, **policy) for _ in range(2))
    bias = torch.tensor([3.0, -1.0])
    for seed in range(3):
        rows, values = batch(seed)
        ours = receipt_of(sparse.push({"bias": bias, **by_rows(rows, values)}))
        theirs = receipt_of(whole.push({"bias": bias, "emb": dense(rows, values)}))
        assert (ours["lr"], ours["loss_scale"]) == (theirs["lr"], theirs["loss_scale"])
        for figure in ("grad_norm", "clip_scale", "update_norm", "param_norm"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-6), figure
    assert_equal(sparse.pull(), whole.pull())
    assert_equal(state_of(sparse), state_of(whole))
    if "ema" in policy:
        assert_equal(sparse.pull(weights="ema"), whole.pull(weights="ema"))


def test_clipping_scales_the_rows_and_the_norms_are_theirs(http: httpx.Client) -> None:
    subject = Subject.create(http, "sparse_adam", params=TABLES, clip={"max_norm": 0.5})
    receipt = receipt_of(subject.push(by_rows()))
    norm = dense().norm().item()
    assert receipt["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert receipt["clip_scale"] == pytest.approx(0.5 / norm, rel=1e-5)
    after = subject.pull()["emb"]
    assert receipt["update_norm"] == pytest.approx((after - TABLE).norm().item(), rel=1e-4)
    assert receipt["param_norm"] == pytest.approx(after.norm().item(), rel=1e-6)
    torch.testing.assert_close(state_of(subject)["emb.exp_avg"], dense() * 0.1 * receipt["clip_scale"])


def test_a_whole_gradient_is_one_that_names_every_row(http: httpx.Client) -> None:
    whole, sparse = (Subject.create(http, "sparse_adam", params=TABLES) for _ in range(2))
    for seed in range(3):
        grads = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
        order = torch.randperm(HEIGHT, generator=torch.Generator().manual_seed(seed))
        one = receipt_of(whole.push({"emb": grads}))
        other = receipt_of(sparse.push(by_rows(order, grads[order])))
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-12)
    assert_equal(whole.pull(), sparse.pull())
    assert_equal(state_of(whole), state_of(sparse))


def test_no_rows_are_a_step_that_moves_nothing(http: httpx.Client) -> None:
    subject = Subject.create(http, "sparse_adam", params=TABLES)
    subject.push(by_rows())
    before, state = subject.pull(), state_of(subject)
    receipt = receipt_of(subject.push(by_rows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, WIDTH))))
    assert (receipt["step"], receipt["outcome"], receipt["grad_norm"], receipt["update_norm"]) == (2, "applied", 0, 0)
    assert receipt["param_norm"] == pytest.approx(before["emb"].norm().item(), rel=1e-6)
    assert_equal(subject.pull(), before)
    assert_equal(state_of(subject), state)


def test_json_and_every_wire_dtype_say_the_same(http: httpx.Client) -> None:
    values = VALUES.bfloat16().float()
    pushed: list[Subject] = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        pushed.append(Subject.create(http, "sparse_adam", params=TABLES))
        receipt_of(pushed[-1].push(by_rows(ROWS, values.to(dtype))))
    pushed.append(Subject.create(http, "sparse_adam", params=TABLES))
    body = {"grads": {"emb": {"rows": ROWS.tolist(), "values": values.tolist()}}}
    receipt = receipt_of(http.post(f"{pushed[-1].path}/steps", json=body, headers={**JSON, "If-Match": '"0"'}))
    assert receipt["outcome"] == "applied"
    for other in pushed[1:]:
        assert_equal(other.pull(), pushed[0].pull())
    half = Subject.create(http, "sparse_adam", params=TABLES)
    receipt_of(half.push(by_rows(ROWS, values.half())))
    torch.testing.assert_close(half.pull(), pushed[0].pull(), rtol=1e-3, atol=1e-5)


def test_groups_step_rows_by_their_own_hyperparameters_beside_whole_tensors(http: httpx.Client) -> None:
    tables = {"emb": TABLE, "slow": TABLE.clone(), "whole": TABLE.clone()}
    groups = [{"name": "slow", "match": ["slow"], "lr": 0.001}]
    subject = Subject.create(http, "sparse_adam", params=tables, groups=groups, lr=0.1)
    grads = {**by_rows(), "slow#rows": ROWS, "slow#values": VALUES, "whole": dense()}
    receipt = receipt_of(subject.push(grads))
    after = subject.pull()
    moved = {name: after[name] - TABLE for name in tables}
    torch.testing.assert_close(moved["slow"], moved["emb"] / 100, rtol=1e-3, atol=1e-6)
    assert torch.equal(moved["whole"], moved["emb"])
    assert receipt["update_norm"] == pytest.approx(torch.stack([*moved.values()]).norm().item(), rel=1e-4)
    assert receipt["param_norm"] == pytest.approx(torch.stack([*after.values()]).norm().item(), rel=1e-6)


def test_buffers_come_beside_rows(http: httpx.Client) -> None:
    tensors = [{"name": "emb", "shape": [HEIGHT, WIDTH]}, {"name": "mean", "shape": [HEIGHT], "role": "buffer"}]
    subject = Subject.create(http, "sparse_adam", params=None, tensors=tensors)
    mean = torch.arange(float(HEIGHT))
    receipt_of(subject.push({**by_rows(), "mean": mean}))
    after = subject.pull()
    assert torch.equal(after["mean"], mean)
    assert after["emb"].count_nonzero() == 3 * WIDTH
    receipt_of(subject.push(by_rows()))
    assert torch.equal(subject.pull()["mean"], mean)


def test_a_repeated_push_of_rows_is_answered_and_not_applied_again(http: httpx.Client) -> None:
    subject = Subject.create(http, "sparse_adam", params=TABLES)
    first = receipt_of(subject.push(by_rows(), key="k"))
    before = subject.stands()
    assert receipt_of(subject.push(by_rows(), key="k")) == {**first, "duplicate": True}
    assert_refused(subject.push(by_rows(ROWS.flip(0)), key="k"), 422, "key-reused")
    assert subject.stands() == before


def test_rows_that_are_not_finite_are_treated_by_the_sessions_policy(http: httpx.Client) -> None:
    damaged = VALUES.clone()
    damaged[2, 1] = torch.nan
    reject, skip, zero = (
        Subject.create(http, "sparse_adam", params=TABLES, nonfinite=policy) for policy in ("reject", "skip", "zero")
    )
    before = reject.stands()
    reply = reject.push(by_rows(ROWS, damaged), if_match='"0"')
    assert_refused(reply, 422, "nonfinite-gradients", tensors=["emb"])
    assert reject.stands() == before
    assert receipt_of(skip.push(by_rows(ROWS, damaged)))["outcome"] == "skipped_nonfinite"
    assert_equal(skip.pull(), TABLES)
    receipt_of(zero.push(by_rows(ROWS, damaged)))
    healed = damaged.nan_to_num(0.0)
    wanted = Subject.create(http, "sparse_adam", params=TABLES)
    receipt_of(wanted.push(by_rows(ROWS, healed)))
    assert_equal(zero.pull(), wanted.pull())


def refused(subject: Subject, grads: Mapping[str, Tensor], status: int, slug: str, **evidence: Any) -> None:
    before = subject.stands()
    assert_refused(subject.push(grads), status, slug, **evidence)
    assert subject.stands() == before


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("adamw", {}),
        ("muon", {}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"weight_decay": 0.1}),
        ("adagrad", {"weight_decay": 0.1}),
    ],
    ids=str,
)
def test_an_optimizer_that_moves_the_other_rows_too_refuses_rows(
    http: httpx.Client, optimizer: str, settings: Mapping[str, Any]
) -> None:
    subject = Subject.create(http, optimizer, params=TABLES, **settings)
    refused(subject, by_rows(), 422, "invalid-field", field="emb")
    receipt_of(subject.push({"emb": dense()}))


def test_momentum_for_one_step_and_pushes_that_are_added_up_refuse_rows(http: httpx.Client) -> None:
    plain = Subject.create(http, "sgd", params=TABLES)
    before = plain.stands()
    assert_refused(plain.push(by_rows(), hyperparameters='{"weight_decay": 0.1}'), 422, "invalid-field", field="emb")
    assert plain.stands() == before
    receipt_of(plain.push(by_rows()))
    adding = Subject.create(http, "sgd", params=TABLES, accumulate={"steps": 2})
    refused(adding, by_rows(), 422, "invalid-field", field="emb")


def test_a_schedule_that_brings_momentum_refuses_rows_from_then_on(http: httpx.Client) -> None:
    schedule = {"name": "one_cycle", "max_lr": 0.1, "total_steps": 10}
    subject = Subject.create(http, "sgd", params=TABLES, schedule=schedule)
    refused(subject, by_rows(), 422, "invalid-field", field="emb")


def test_state_in_fewer_bytes_refuses_rows(http: httpx.Client) -> None:
    tensors = [{"name": "emb", "shape": [HEIGHT, WIDTH]}]
    body = {"optimizer": {"name": "adagrad"}, "tensors": tensors, "state_dtype": "8bit"}
    subject = Subject(http, http.post("/v1/sessions", json=body).headers["Location"])
    refused(subject, by_rows(), 422, "invalid-field", field="emb")


@pytest.mark.parametrize(
    ("grads", "status", "slug"),
    [
        (by_rows(torch.tensor([0, HEIGHT, 1, 2])), 422, "invalid-field"),
        (by_rows(torch.tensor([0, -1, 1, 2])), 422, "invalid-field"),
        (by_rows(torch.zeros(HEIGHT + 1, dtype=torch.int64), torch.ones(HEIGHT + 1, WIDTH)), 422, "invalid-field"),
        ({**by_rows(), "emb": dense()}, 422, "invalid-field"),
        (by_rows(ROWS, VALUES[:, :3]), 422, "shape-mismatch"),
        (by_rows(ROWS[:3]), 422, "shape-mismatch"),
        ({"emb#rows": ROWS}, 422, "tensor-mismatch"),
        ({"emb#values": VALUES}, 422, "tensor-mismatch"),
        ({}, 422, "tensor-mismatch"),
        (by_rows(ROWS.float()), 415, "unsupported-dtype"),
        (by_rows(ROWS, ROWS[:, None].expand(-1, WIDTH)), 415, "unsupported-dtype"),
        ({"emb": torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)}, 415, "unsupported-dtype"),
    ],
    ids=[
        "too high", "negative", "too many", "both ways", "too narrow", "too few", "no values", "no rows", "nothing",
        "rows that are floats", "values that are integers", "a tensor that is integers",
    ],
)  # fmt: skip
def test_what_cannot_be_rows_is_refused_and_nothing_changes(
    http: httpx.Client, grads: Mapping[str, Tensor], status: int, slug: str
) -> None:
    subject = Subject.create(http, "sparse_adam", params=TABLES)
    receipt_of(subject.push(by_rows()))
    refused(subject, grads, status, slug)
    receipt_of(subject.push(by_rows()))


def test_rows_are_for_pushes_alone(http: httpx.Client) -> None:
    subject = Subject.create(http, "sparse_adam", params=TABLES)
    before = subject.stands()
    reply = http.put(f"{subject.path}/params", content=tensor_file(by_rows()), headers=SAFETENSORS)
    assert_refused(reply, 415, "unsupported-dtype")
    rows = {"rows": [1], "values": [[1.0] * WIDTH]}
    assert_refused(http.put(f"{subject.path}/params", json={"params": {"emb": rows}}), 422, "invalid-field")
    assert subject.stands() == before


def test_sparse_adam_takes_tables_and_says_what_to_do_with_the_rest(http: httpx.Client) -> None:
    body = {"optimizer": {"name": "sparse_adam"}, "params": lists(MIXED)}
    reply = http.post("/v1/sessions", json=body)
    assert_refused(reply, 422, "invalid-field", field="tensors")
    assert "second session" in reply.json()["detail"]


def test_the_catalogue_says_who_takes_rows(http: httpx.Client) -> None:
    rows = http.get("/v1/optimizers").json()["optimizers"]
    assert {row["name"] for row in rows if row["takes_rows"]} == {"sparse_adam", "sgd", "adagrad"}


def test_adams_moments_go_on_as_sparse_adams(http: httpx.Client) -> None:
    subject = Subject.create(http, "adam", params=TABLES)
    receipt_of(subject.push({"emb": dense()}))
    before = state_of(subject)
    reply = http.put(f"{subject.path}/optimizer", json={"name": "sparse_adam"})
    assert reply.json()["carried"] == {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
    assert_equal(state_of(subject), before)
    assert receipt_of(subject.push(by_rows()))["outcome"] == "applied"
