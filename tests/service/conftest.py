from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from posing_device import POSE, on_device


class Device(NamedTuple):
    """Attributes: put: a copy of a tensor that lies there.   tolerance: how near to the host's numbers its own are."""

    put: Callable[[torch.Tensor], torch.Tensor]
    tolerance: float


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["posing", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """What poses as a GPU in this process, and a GPU where there is one."""
    if request.param == "cuda":
        yield Device(lambda tensor: tensor.cuda(), 1e-5)
        return
    for where, name, pose in POSE:
        monkeypatch.setattr(where, name, pose)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server has it; the tensors of tests are too small for more
    yield Device(lambda tensor: on_device(tensor.clone()), 1e-6)
    torch.set_num_threads(threads)
