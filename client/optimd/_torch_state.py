"""Optimizer state between torch's `state_dict` and the session's: one keyed by position, the other by tensor name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimd._safetensors import Array
from optimd._torch_groups import ParamGroup
from optimd.models import StateDict

TorchState: TypeAlias = dict[str, Any]

# Their update does not depend on how many came before it, and torch's SGD and every published Lion keep no `step`.
UNCOUNTED = frozenset({"sgd", "lion"})
# torch's Adam decays as AdamW does when it is told so, which is a hyperparameter of no session.
DECOUPLED = {"adam": False, "adamw": True}


def to_torch(state: StateDict, params: Mapping[str, Tensor]) -> dict[Tensor, dict[str, Tensor]]:
    """What a local optimizer would keep for each parameter; CPU tensors of the session's dtype."""
    kept: dict[str, dict[str, Tensor]] = {}
    for path, array in state.tensors.items():
        name, _, buffer = path.rpartition(".")
        kept.setdefault(name, {})[buffer] = torch.from_numpy(array)
    counted = state.optimizer not in UNCOUNTED
    return {
        param: ({"step": torch.tensor(float(state.step))} if counted else {}) | kept[name]
        for name, param in params.items()
        if name in kept
    }


def from_torch(state_dict: TorchState, names: Sequence[str], optimizer: str) -> StateDict:
    """The session's form of a `state_dict` whose parameters are, in order, ``names``.

    Raises: ValueError when parameters have seen different numbers of steps, or only some have state: a session
      keeps one count for all.
    """
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    state = {name: state_dict["state"].get(i) or {} for name, i in zip(names, ids, strict=True)}
    tensors = {
        f"{name}.{buffer}": _array(value)
        for name, buffers in state.items()
        for buffer, value in buffers.items()
        if buffer != "step" and value is not None
    }
    return StateDict(optimizer, 0 if optimizer in UNCOUNTED else _step(state), tensors)


def _array(value: Any) -> Array:
    tensor = torch.as_tensor(value)
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy(force=True)


def _step(state: Mapping[str, Mapping[str, Any]]) -> int:
    steps = {name: int(buffers["step"]) for name, buffers in state.items() if "step" in buffers}
    for name in state:
        if steps and name not in steps:
            raise ValueError(f"the state has no step of {name!r}, and a session keeps state of every parameter or none")
    first = next(iter(steps), "")
    for name, step in steps.items():
        if step != steps[first]:
            raise ValueError(
                f"the state has seen {steps[first]} steps of {first!r} and {step} of {name!r}, and a session counts "
                "the steps of all its parameters together"
            )
    return steps[first] if steps else 0


def loaded_groups(
    state_dict: TorchState, groups: Sequence[ParamGroup], known: Iterable[str], optimizer: str
) -> list[ParamGroup]:
    """The parameter groups of a `state_dict`, with the parameters of ``groups``.

    Raises: ValueError when they are not alike, lack a hyperparameter, or ask for what the session does not do.
    """
    saved = state_dict["param_groups"]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        raise ValueError("the state dict has other parameter groups than this optimizer, or groups of another size")
    for i, group in enumerate(saved):
        _check(group, f"the state dict's parameter group {i}", known, optimizer)
    return [_with_params_of(group, deepcopy(new)) for group, new in zip(groups, saved, strict=True)]


def _check(group: ParamGroup, what: str, known: Iterable[str], optimizer: str) -> None:
    missing = [name for name in known if name not in group]
    if missing:
        raise ValueError(f"{what} has no {missing[0]!r}: it is of another optimizer than {optimizer!r}")
    if group.get("maximize"):
        raise ValueError(f"{what} maximizes, and a session minimizes")
    decoupled = DECOUPLED.get(optimizer)
    if decoupled is not None and group.get("decoupled_weight_decay", decoupled) != decoupled:
        raise ValueError(f"{what} is of {'adam' if decoupled else 'adamw'!r}, not of {optimizer!r}")


def _with_params_of(group: ParamGroup, new: ParamGroup) -> ParamGroup:
    new["params"] = group["params"]
    if "param_names" in group:
        new.setdefault("param_names", group["param_names"])
    return new
