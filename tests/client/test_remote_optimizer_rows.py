"""Gradients by rows: from `RowGradient` and from nn.Embedding(sparse=True), held against torch's own optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optimd

Remote = Callable[..., optimd.RemoteOptimizer]
HEIGHT, WIDTH = 50, 6


def embedding(dtype: torch.dtype = torch.float32) -> nn.Embedding:
    layer = nn.Embedding(HEIGHT, WIDTH, sparse=True, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)))
    return layer


def lookups(steps: int, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows, some of them twice, and what the loss multiplies them with."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(HEIGHT, (9,), generator=generator), torch.randn(9, WIDTH, generator=generator)


def train(layer: nn.Embedding, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    for rows, target in lookups(steps, seed):
        optimizer.zero_grad()
        (layer(rows) * target.to(layer.weight.dtype)).square().sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.is_sparse
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "local", "settings"),
    [
        ("sparse_adam", torch.optim.SparseAdam, {"lr": 0.01}),
        ("sparse_adam", torch.optim.SparseAdam, {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6}),
        ("sgd", torch.optim.SGD, {"lr": 0.01}),
        ("adagrad", torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01}),
    ],
    ids=str,
)
def test_fifty_steps_of_a_sparse_embedding_end_where_torchs_end(
    remote: Remote, name: str, local: Callable[..., torch.optim.Optimizer], settings: dict[str, float]
) -> None:
    ours, theirs = embedding(), embedding()
    opt = remote(ours.named_parameters(), name, **settings)
    train(ours, opt, 50)
    train(theirs, local(theirs.parameters(), **settings), 50)
    assert opt.receipt is not None
    assert opt.receipt.step == 50
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-6)


def test_state_goes_to_torchs_sparse_adam_and_back(remote: Remote) -> None:
    ours, theirs, back, alone = embedding(), embedding(), embedding(), embedding()
    opt = remote(ours.named_parameters(), "sparse_adam", lr=0.01)
    train(ours, opt, 5, seed=1)
    local = torch.optim.SparseAdam(theirs.parameters(), lr=0.01)
    local.load_state_dict(opt.state_dict())
    theirs.load_state_dict(ours.state_dict())
    train(theirs, local, 5, seed=2)
    again = remote(back.named_parameters(), "sparse_adam", lr=0.01)
    back.load_state_dict(theirs.state_dict())
    again.load_state_dict(local.state_dict())
    train(back, again, 5, seed=3)
    whole = torch.optim.SparseAdam(alone.parameters(), lr=0.01)
    for seed in (1, 2, 3):
        train(alone, whole, 5, seed=seed)
    torch.testing.assert_close(back.weight, alone.weight, rtol=0, atol=1e-6)


def test_a_sparse_embedding_beside_dense_layers_steps_with_them(remote: Remote) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(HEIGHT, WIDTH, sparse=True), nn.Linear(WIDTH, 2))

    ours, theirs = model(), model()
    pairs = [
        (ours, remote(ours.named_parameters(), "sgd", lr=0.1)),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1)),
    ]
    for rows, _ in lookups(20):
        for module, optimizer in pairs:
            optimizer.zero_grad()
            module(rows).square().mean().backward()
            optimizer.step()
    for got, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_sparse_gradients_in_bfloat16_are_sent_as_they_are(remote: Remote) -> None:
    layer = embedding(torch.bfloat16)
    opt = remote(layer.named_parameters(), "sparse_adam", lr=0.5)
    before = layer.weight.detach().clone()
    layer(torch.tensor([3, 1, 3])).sum().backward()
    opt.step()
    moved = (layer.weight != before).any(1).nonzero().flatten()
    assert moved.tolist() == [1, 3]


def test_momentum_refuses_a_sparse_gradient_and_says_why(remote: Remote) -> None:
    layer = embedding()
    opt = remote(layer.named_parameters(), "sgd", lr=0.1, momentum=0.9)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(optimd.ProblemError, match="momentum"):
        opt.step()


@pytest.fixture
def session(server_url: str) -> Iterator[optimd.Session]:
    weights = torch.ones(HEIGHT, WIDTH).numpy()
    with optimd.Client(server_url) as client:
        session = client.create_session("sparse_adam", params={"emb": weights, "other": weights}, lr=0.1)
        yield session
        session.delete()


@pytest.mark.parametrize("rows", [[4, 2], (4, 2), np.array([4, 2], np.int32), np.array([4, 2], np.uint8)], ids=str)
def test_a_row_gradient_moves_its_rows_alone(session: optimd.Session, rows: object) -> None:
    grad = optimd.RowGradient(rows, np.full((2, WIDTH), 2.0, np.float32))  # type: ignore[arg-type] # object for short
    result = session.step({"other": np.zeros((HEIGHT, WIDTH), np.float32), "emb": grad})
    assert np.unique(np.nonzero(result.params["emb"] != 1)[0]).tolist() == [2, 4]
    assert (result.params["other"] == 1).all()
    assert result.receipt.grad_norm == pytest.approx(2 * np.sqrt(2 * WIDTH))


def test_no_rows_of_a_table_may_be_sent(session: optimd.Session) -> None:
    none = optimd.RowGradient([], np.zeros((0, WIDTH), np.float32))
    receipt = session.push({"emb": none, "other": none})
    assert (receipt.step, receipt.update_norm) == (1, 0)


def test_rows_that_are_no_integers_are_refused_before_anything_is_sent(session: optimd.Session) -> None:
    grad = optimd.RowGradient([0.5], np.zeros((1, WIDTH), np.float32))
    with pytest.raises(TypeError, match="'emb' are integers"):
        session.step({"emb": grad, "other": grad})


def test_a_row_that_the_table_lacks_is_the_servers_to_refuse(session: optimd.Session) -> None:
    grad = optimd.RowGradient([HEIGHT], np.zeros((1, WIDTH), np.float32))
    with pytest.raises(optimd.ProblemError, match="0 … 49"):
        session.step({"emb": grad, "other": grad})


async def test_rows_are_pushed_from_asyncio_too(server_url: str) -> None:
    async with optimd.AsyncClient(server_url) as client:
        session = await client.create_session("sparse_adam", params={"emb": np.ones((HEIGHT, WIDTH), np.float32)})
        result = await session.step({"emb": optimd.RowGradient([7], np.ones((1, WIDTH), np.float32))})
        await session.delete()
    assert np.unique(np.nonzero(result.params["emb"] != 1)[0]).tolist() == [7]
