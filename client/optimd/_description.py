"""What a session is to be, as the SDK is told it and as the create body says it: one list of arguments for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

from numpy.typing import ArrayLike

from optimd._safetensors import RawTensor, as_raw

Tensors: TypeAlias = Mapping[str, ArrayLike | RawTensor]
TensorSpecs: TypeAlias = Mapping[str, Sequence[int]] | Sequence[Mapping[str, Any]]
Fields: TypeAlias = Mapping[str, Any]
"""A JSON object of the HTTP reference, such as `{"name": "cosine", "total_steps": 1000}`."""

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Description:
    """A create body in JSON values, and the weights that come with it."""

    document: dict[str, Any]
    params: Tensors | None

    def without_weights(self) -> dict[str, Any]:
        """The create body, with names and shapes in place of the weights."""
        if self.params is None or "tensors" in self.document:
            return self.document
        raw = {name: as_raw(tensor) for name, tensor in self.params.items()}
        dtype = "F64" if {tensor.dtype for tensor in raw.values()} == {"F64"} else "F32"
        tensors = [{"name": name, "shape": list(tensor.shape), "dtype": dtype} for name, tensor in raw.items()]
        return self.document | {"tensors": tensors}


def describe(
    optimizer: str | Fields,
    *,
    tensors: TensorSpecs | None = None,
    params: Tensors | None = None,
    name: str | None = None,
    groups: Sequence[Fields] | Literal["no_decay"] | None = None,
    buffers: Sequence[str] | None = None,
    frozen: Sequence[str] | None = None,
    nonfinite: str | None = None,
    schedule: Fields | None = None,
    clip: Fields | None = None,
    centralize: bool | None = None,
    maximize: bool | None = None,
    accumulate: Fields | None = None,
    loss_scale: Fields | None = None,
    ema: Fields | None = None,
    swa: Fields | None = None,
    state_dtype: Literal["f32", "bf16", "8bit"] | None = None,
    grad_dtype: Literal["BF16"] | None = None,
    wire: Fields | None = None,
    seed: int | None = None,
    storage: Fields | None = None,
    durability: Literal["step", "checkpoint", "memory"] | None = None,
    checkpoint: Fields | None = None,
    **hyperparameters: Any,
) -> Description:
    """The description of a session. What is None is the server's to choose.

    Args:
      optimizer: its name in the catalogue, or a mapping of name and hyperparameters.
      tensors: tensor name → shape, or the HTTP reference's list of `{"name", "shape", "init", "role", …}`.
      params: tensor name → weights.
      groups: hyperparameters of their own for some tensors: `[{"match": ["*.bias"], "weight_decay": 0}]`; "no_decay"
        for no weight decay on biases, normalisation and other tensors of one dimension.
      buffers, frozen: shell patterns of tensors that are not trained: buffers come with a push, frozen ones stay.
      nonfinite: "reject" (default), "skip" or "zero": what to do with a gradient that is not finite.
      schedule: how hyperparameters change: `{"name": "cosine", "warmup_steps": 100, "total_steps": 1000}`.
      clip: `{"max_norm": 1.0}`, `{"clip_value": 0.1}` or `{"agc": 0.01}`.
      centralize: take the mean from each gradient of two dimensions or more.
      maximize: step along the gradient.
      accumulate: how many pushes make one step: `{"steps": 4}`.
      loss_scale: gradients come scaled, and the scale adapts: `{"init_scale": 65536}`; each receipt has the next one.
      ema, swa: averages of the weights to keep: `{"decay": 0.999}`, `{"start": 1000}`.
      state_dtype: of the optimizer's state: "f32" (default), "bf16" or "8bit".
      grad_dtype: "BF16" for gradients that stay in bfloat16 on the server; by default they are kept as the weights are.
      wire: dtypes of gradients and weights on their way, `{"grads": "bf16", "params": "bf16"}`; with
        `"difference": True`, weights come without errors that add up (the steps' ``out`` explains).
      seed: of the server's initialisers.
      durability: "step" (default): a step is on the server's disk when it is acknowledged; "checkpoint": a crash loses
        what came since the last checkpoint; "memory": nothing is kept.
      checkpoint: when checkpoints are made, and how many are kept: `{"steps": 1000, "seconds": 60, "keep": 2}`.
      storage, name: as in the HTTP reference.
      hyperparameters: such as `lr=1e-3`; the optimizer's defaults for the rest.
    """
    said = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    document: dict[str, Any] = {"optimizer": said | hyperparameters, "tensors": _tensor_list(tensors), "name": name}
    document |= {"groups": groups, "buffers": buffers, "frozen": frozen, "nonfinite": nonfinite}
    document |= {"schedule": schedule, "clip": clip, "centralize": centralize, "maximize": maximize}
    document |= {"accumulate": accumulate, "loss_scale": loss_scale, "ema": ema, "swa": swa}
    document |= {"state_dtype": state_dtype, "grad_dtype": grad_dtype, "wire": wire, "seed": seed}
    document |= {"storage": storage, "durability": durability, "checkpoint": checkpoint}
    return Description({field: value for field, value in document.items() if value is not None}, params)


def takes(
    arguments: Callable[P, Description],
) -> Callable[[Callable[[S, Description], T]], Callable[Concatenate[S, P], T]]:
    """Make a method of a description one of ``arguments``: each call is typed and documented in one place."""

    def decorate(method: Callable[[S, Description], T]) -> Callable[Concatenate[S, P], T]:
        @wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return method(self, arguments(*args, **kwargs))

        own, taken = signature(method), signature(arguments)
        parameters = [next(iter(own.parameters.values())), *taken.parameters.values()]
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined] # read by help()
        return call

    return decorate


def _tensor_list(tensors: TensorSpecs | None) -> list[Fields] | None:
    if tensors is None:
        return None
    if isinstance(tensors, Mapping):
        return [{"name": name, "shape": list(shape)} for name, shape in tensors.items()]
    return list(tensors)
