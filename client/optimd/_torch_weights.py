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


def gradients(params: Mapping[str, Tensor], missing: MissingGrad, by_rows: bool = False) -> dict[str, Tensor]:
    """The gradient of every parameter; empty when no parameter has one.

    Args:
      by_rows: the optimizer takes sparse gradients, as nn.Embedding(sparse=True) has them.

    Raises: RuntimeError naming the parameter whose gradient is sparse, or missing where ``missing`` is "error".
    """
    if all(param.grad is None for param in params.values()):
        return {}
    return {name: _gradient(name, param, missing, by_rows) for name, param in params.items()}


def _gradient(name: str, param: Tensor, missing: MissingGrad, by_rows: bool) -> Tensor:
    grad = param.grad
    if grad is None:
        if missing == "zero":
            return torch.from_numpy(np.zeros(param.shape, np.float32))  # which takes no memory until it is written
        raise RuntimeError(
            f"the parameter {name!r} has no gradient, and a step takes one of every parameter: leave it out of the "
            "optimizer if it is not trained, or pass missing_grad='zero' to send zeros for it"
        )
    rows = grad.layout is torch.sparse_coo and (grad.sparse_dim(), grad.dense_dim()) == (1, 1)
    if grad.layout is torch.strided or (by_rows and rows):
        return grad
    raise RuntimeError(
        f"the gradient of {name!r} is sparse, and this optimizer takes dense ones: make its layer with sparse=False, "
        "or take sparse_adam, which takes rows of tables"
    )


def to_send(grads: Mapping[str, Tensor]) -> dict[str, Gradient]:
    """Gradients as they are sent: without a copy where none is needed, and sparse ones by their rows."""
    return {name: _rows(grad) if grad.is_sparse else on_wire(grad) for name, grad in grads.items()}


def _rows(grad: Tensor) -> RowGradient:
    rows = grad.coalesce()  # no more rows than the tensor has, whatever the batch looked up twice
    return RowGradient(rows.indices()[0].cpu().numpy(), on_wire(rows.values()))


class LocalWeights:
    """The parameters, and whether they still hold what they held when they last agreed with the server.

    Changes are seen by autograd's version counter and by the place in memory; a change through `.data` that stays in
    place is seen by neither.

    Args:
      params: tensor name → parameter; a parameter that is moved is followed.
      dtype: of the session's weights.
      beside: where differences are received, arrays of ``dtype`` for the tensors that are no parameters; else None.
    """

    def __init__(
        self, params: Mapping[str, Tensor], dtype: DTypeLike, beside: Mapping[str, Array] | None = None
    ) -> None:
        self._dtype = np.dtype(dtype)
        self._exact = beside is not None
        self._beside = beside or {}
        self._places = {name: self._place(param) for name, param in params.items()}

    def _place(self, param: Tensor) -> _Place:
        # A difference is added to what is there, which a narrower parameter would have rounded.
        direct = not self._exact or param.dtype is _torch_dtype(self._dtype)
        return _Place(param, self._dtype, direct=direct)

    @property
    def edited(self) -> bool:
        """Whether a parameter has been written since the last `settle`, or there was none."""
        return any(place.edited for place in self._places.values())

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return list(self._places)

    def on_wire(self) -> dict[str, Wire]:
        """Every parameter, to be sent."""
        return {name: on_wire(place.param) for name, place in self._places.items()}

    def targets(self) -> dict[str, Wire]:
        """Tensor name → array to receive its weights: the parameter's own memory where that can be."""
        for name, place in self._places.items():
            if place.moved:
                self._places[name] = self._place(place.param)
        return {**self._beside, **{name: place.target for name, place in self._places.items()}}

    def expect(self) -> None:
        """New weights are on their way: a backward pass through the old ones must fail from now on."""
        increment_version([place.param for place in self._places.values()])
        self.settle()

    def land(self, name: str) -> None:
        """Take what was received into one of the last `targets` to its parameter, if it is one's.

        Behind autograd's back: `agree` counts it.
        """
        if name in self._places:
            self._places[name].land()

    def received(self) -> None:
        """Finish what was received into the last `targets`; the parameters now agree with the server."""
        for place in self._places.values():
            place.land()
            place.agree()

    def agree(self, name: str) -> None:
        """Take note that a parameter agrees with the server, whose weights for it have landed.

        Raises: RuntimeError when it has been written since `settle`, that is while they were on their way.
        """
        place = self._places[name]
        spoilt = place.edited
        place.agree()
        if spoilt:
            raise RuntimeError(
                f"the parameter {name!r} was changed while its new weights were on their way, and may hold some of "
                "both: call opt.wait() before changing parameters, or use overlap='push'. opt.pull_weights() fetches "
                "the session's weights"
            )

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

    Args:
      direct: whether they may be converted to the parameter's dtype on their way.

    Attributes:
      target: where the wire writes them: the parameter's memory, or an array beside it where that cannot be.
    """

    def __init__(self, param: Tensor, dtype: np.dtype[np.generic], *, direct: bool) -> None:
        self.param = param
        # Being held, it cannot become another tensor's at the same address.
        self._memory = param.detach()
        self._staged = not (direct and param.is_cpu and param.is_contiguous())
        self._beside = np.empty(param.shape if self._staged else 0, dtype)
        self.target: Wire = self._beside if self._staged else on_wire(self._memory)
        self._address = _address(param)
        self._version: int | None = None

    @property
    def moved(self) -> bool:
        """Whether the parameter lies elsewhere by now."""
        return _address(self.param) != self._address

    @property
    def edited(self) -> bool:
        return self.param._version != self._version or self.moved  # noqa: SLF001 - torch has no public name for it

    def land(self) -> None:
        if self._staged:
            self._memory.data.copy_(torch.from_numpy(self._beside))  # not counted, as the wire's own writing is not

    def agree(self) -> None:
        # Written behind autograd's back: a backward pass through the old weights must fail, as it does locally.
        increment_version([self._memory])
        self.settle()

    def settle(self) -> None:
        self._version = self.param._version  # noqa: SLF001 - as above


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.stride()


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32
