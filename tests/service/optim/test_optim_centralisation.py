"""Gradient centralisation against its formula, tensor by tensor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from optim_references import SHAPES, deviation, gradients, layout_of
from torch import Tensor

from optimd_service.optim import units
from optimd_service.optim.blocks import BLOCK
from optimd_service.optim.centralisation import centralise_
from optimd_service.types import Layout

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def centred(grads: Tensor, layout: Layout) -> Tensor:
    """The paper's formula in float64, rounded once to the dtype of ``grads``."""
    wanted = grads.double()
    for g in layout.views(wanted).values():
        if g.ndim >= 2 and g.numel():
            g.sub_(g.mean(tuple(range(1, g.ndim)), keepdim=True))
    return wanted.to(grads.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_has_its_mean_taken_from_it(dtype: torch.dtype) -> None:
    layout = layout_of([*SHAPES, (0, 4), (4, 0), (1, 9)])
    grads = gradients(layout, 1)[0].add_(0.5).to(dtype)
    wanted = centred(grads, layout)
    centralise_(grads, layout)
    assert deviation(grads.double(), wanted.double()) <= {torch.bfloat16: 1e-3, torch.float32: 1e-7}.get(dtype, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_and_scalars_keep_their_bits(dtype: torch.dtype) -> None:
    layout = layout_of([(), (7,), (1,), (0,)])
    grads = gradients(layout, 1)[0].to(dtype)
    before = grads.clone()
    centralise_(grads, layout)
    assert torch.equal(grads, before)


def test_a_row_of_one_element_becomes_zero() -> None:
    grads = torch.tensor([3.0, -2.0])
    centralise_(grads, layout_of([(2, 1)]))
    assert grads.tolist() == [0, 0]


def test_tensors_behind_the_gradients_have_none() -> None:
    layout = layout_of([(2, 2), (3, 3)])
    first = layout.spans[layout.tensors[0].name]
    grads = torch.arange(float(first.stop))
    centralise_(grads, layout)
    assert grads.view(3, 3).tolist() == [[-1, 0, 1]] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_do_not_depend_on_who_works(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of([(3, BLOCK // 2 + 1), (5,), (2, BLOCK + 3), (700, 30), (4, 4)])
    grads = torch.randn(layout.numel, generator=torch.Generator().manual_seed(2)).add_(1).to(dtype)
    alone, several, finely = grads.clone(), grads.clone(), grads.clone()
    centralise_(alone, layout)
    with ThreadPoolExecutor(3) as threads:
        centralise_(several, layout, threads.map)
    monkeypatch.setattr(units, "BLOCK", 64)
    centralise_(finely, layout)
    assert torch.equal(alone, several)
    assert torch.equal(alone, finely)
    assert not torch.equal(alone, grads)
