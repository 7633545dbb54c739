"""Parameters and gradients between torch's memory and the wire, without a copy where none is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.autograd.graph import increment_version

from optimd._rows import RowGradient
from optimd._safetensors import Array, RawTensor

MissingGrad: TypeAlias = Literal["error", "zero"]
Wire: TypeAlias = Array | RawTensor
Gradient: TypeAlias = Wire | RowGradient

WIRE_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def on_wire(tensor: Tensor) -> Wire:
    """The tensor's numbers where they lie, or a copy of them when that is not contiguous CPU memory."""
    here = tensor.detach()
    if not here.is_cpu:
        here = here.cpu()
    if here.dtype is torch.bfloat16:
        bits = here.contiguous().reshape(-1).view(torch.int16)
        return RawTensor("BF16", tuple(here.shape), bits.numpy())
    return here.numpy()


def gradients(params: Mapping[str, Tensor], missing: MissingGrad, by_rows: bool = False) -> dict[str, Gradient]:
    """The gradient of every parameter; empty when no parameter has one.

    Args:
      by_rows: the optimizer takes sparse gradients, as nn.Embedding(sparse=True) has them.

    Raises: RuntimeError naming the parameter whose gradient is sparse, or missing where ``missing`` is "error".
    """
    if all(param.grad is None for param in params.values()):
        return {}
    return {name: _gradient(name, param, missing, by_rows) for name, param in params.items()}


def _gradient(name: str, param: Tensor, missing: MissingGrad, by_rows: bool) -> Gradient:
    grad = param.grad
    if grad is None:
        if missing == "zero":
            return np.zeros(param.shape, np.float32)
        raise RuntimeError(
            f"the parameter {name!r} has no gradient, and a step takes one of every parameter: leave it out of the "
            "optimizer if it is not trained, or pass missing_grad='zero' to send zeros for it"
        )
    if grad.layout is torch.strided:
        return on_wire(grad)
    if by_rows and grad.layout is torch.sparse_coo and (grad.sparse_dim(), grad.dense_dim()) == (1, 1):
        rows = grad.coalesce()  # no more rows than the tensor has, whatever the batch looked up twice
        return RowGradient(rows.indices()[0].cpu().numpy(), on_wire(rows.values()))
    raise RuntimeError(
        f"the gradient of {name!r} is sparse, and this optimizer takes dense ones: make its layer with sparse=False, "
        "or take sparse_adam, which takes rows of tables"
    )


class LocalWeights:
    """The parameters, and whether they still hold what they held when they last agreed with the server.

    Changes are seen by autograd's version counter and by the place in memory; a change through `.data` that stays in
    place is seen by neither.

    Args:
      params: tensor name → parameter; a parameter that is moved is followed.
      dtype: that weights are received in.
    """

    def __init__(self, params: Mapping[str, Tensor], dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._places = {name: _Place(param, self._dtype) for name, param in params.items()}

    @property
    def edited(self) -> bool:
        """Whether a parameter has been written since the last `settle`, or there was none."""
        return any(place.edited for place in self._places.values())

    def on_wire(self) -> dict[str, Wire]:
        """Every parameter, to be sent."""
        return {name: on_wire(place.param) for name, place in self._places.items()}

    def targets(self) -> dict[str, Array]:
        """Tensor name → array to receive its weights: the parameter's own memory where that can be."""
        for name, place in self._places.items():
            if place.moved:
                self._places[name] = _Place(place.param, self._dtype)
        return {name: place.target for name, place in self._places.items()}

    def received(self) -> None:
        """Finish what was received into the last `targets`; the parameters now agree with the server."""
        staged = [place for place in self._places.values() if place.staged]
        for place in staged:
            place.memory.copy_(torch.from_numpy(place.target))
        # Written behind autograd's back: a backward pass through the old weights must fail, as it does locally.
        increment_version([place.memory for place in self._places.values() if not place.staged])
        self.settle()

    @contextmanager
    def replaced(self, by: Mapping[str, Array]) -> Iterator[None]:
        """Let the parameters hold other weights for a while; they agree with the server afterwards if they did before.

        Args:
          by: tensor name → weights; names of other tensors are passed over.
        """
        agreed = not self.edited
        kept = {name: place.param.detach().clone() for name, place in self._places.items()}
        self._write({name: torch.from_numpy(by[name]) for name in self._places})
        try:
            yield
        finally:
            self._write(kept)
            if agreed:
                self.settle()

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, place in self._places.items():
                place.param.copy_(weights[name])

    def settle(self) -> None:
        """Take note that the parameters, as they are now, agree with the server."""
        for place in self._places.values():
            place.settle()


class _Place:
    """Where one parameter lies, and where weights for it are received.

    Attributes:
      memory: of the parameter; being held, it cannot become another tensor's at the same address.
      staged: whether ``target`` is an array beside it, to be copied from, since the wire cannot write there itself.
    """

    def __init__(self, param: Tensor, dtype: np.dtype[np.generic]) -> None:
        self.param = param
        self.memory = param.detach()
        direct = param.device.type == "cpu" and param.is_contiguous() and param.dtype is _torch_dtype(dtype)
        self.staged = not direct
        self.target: Array = self.memory.numpy() if direct else np.empty(param.shape, dtype)
        self._address = _address(param)
        self._version: int | None = None

    @property
    def moved(self) -> bool:
        """Whether the parameter lies elsewhere by now."""
        return _address(self.param) != self._address

    @property
    def edited(self) -> bool:
        return self.param._version != self._version or self.moved  # noqa: SLF001 - torch has no public name for it

    def settle(self) -> None:
        self._version = self.param._version  # noqa: SLF001 - as above


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.stride()


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32
