"""Optimizer state between torch's `state_dict` and the session's: one keyed by position, the other by tensor name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from optimd._safetensors import Array
from optimd._torch_groups import ParamGroup, tensor_names
from optimd.models import StateDict

TorchState: TypeAlias = dict[str, Any]

# Their update does not depend on how many came before it, and torch's SGD and Muon and every published Lion keep no
# `step`.
UNCOUNTED = frozenset({"sgd", "lion", "muon"})
# What torch remembers of each parameter, and a session of a whole group.
NUMBERS: Mapping[str, tuple[str, ...]] = {"nadam": ("mu_product",), "asgd": ("eta", "mu")}
# Where what else a session remembers of a group stands in its parameter group.
REST = "numbers"
# torch's Adam decays as AdamW does when it is told so, which is a hyperparameter of no session.
DECOUPLED = {"adam": False, "adamw": True}


def to_torch(
    state: StateDict, group_names: Sequence[str], groups: Sequence[ParamGroup]
) -> dict[Tensor, dict[str, Tensor]]:
    """What a local optimizer would keep for each parameter; CPU tensors of the session's dtype.

    Args:
      group_names: the session's, of each of ``groups``.
    """
    kept: dict[str, dict[str, Tensor]] = {}
    for path, array in state.tensors.items():
        name, _, buffer = path.rpartition(".")
        kept.setdefault(name, {})[buffer] = torch.from_numpy(array)
    found: dict[Tensor, dict[str, Tensor]] = {}
    for group_name, group, names in zip(group_names, groups, tensor_names(groups), strict=True):
        for name, param in zip(names, group["params"], strict=True):
            buffers = kept.get(name) or _before_the_first_step(state.optimizer, group, param)
            if buffers:
                found[param] = _numbers_of_parameter(state, group_name) | buffers
    return found


def _before_the_first_step(optimizer: str, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
    """What torch's Adagrad, and no other, keeps before it has stepped, and does not step without."""
    if optimizer != "adagrad":
        return {}
    return {"sum": torch.full_like(param, group["initial_accumulator_value"], device="cpu", requires_grad=False)}


def _numbers_of_parameter(state: StateDict, group_name: str) -> dict[str, Tensor]:
    # New tensors for each parameter: torch counts in place. Numbers are float64 here, and torch makes them float32.
    counted = {} if state.optimizer in UNCOUNTED else {"step": torch.tensor(float(state.step))}
    numbers, names = state.numbers.get(group_name, {}), NUMBERS.get(state.optimizer, ())
    return counted | {name: torch.tensor(numbers[name], dtype=torch.float64) for name in names if name in numbers}


def rest_of_numbers(state: StateDict, group_names: Sequence[str]) -> list[dict[str, float]]:
    """What the session remembers of each group and torch of no parameter."""
    own = NUMBERS.get(state.optimizer, ())
    return [{n: v for n, v in state.numbers.get(group, {}).items() if n not in own} for group in group_names]


def from_torch(
    state_dict: TorchState, group_names: Sequence[str], groups: Sequence[ParamGroup], optimizer: str
) -> StateDict:
    """The session's form of a `state_dict` of parameters that are, in order, those of ``groups``.

    Raises: ValueError when parameters have seen different numbers of steps, or only some have state: a session
      keeps one count for all.
    """
    own = NUMBERS.get(optimizer, ())
    state: dict[str, Mapping[str, Any]] = {}
    numbers: dict[str, dict[str, float]] = {}
    for group_name, names, saved in zip(group_names, tensor_names(groups), state_dict["param_groups"], strict=True):
        of_group = {name: state_dict["state"].get(i) or {} for name, i in zip(names, saved["params"], strict=True)}
        found = {number: _common(number, of_group) for number in own}
        numbers[group_name] = {
            **saved.get(REST, {}),
            **{number: float(value) for number, value in found.items() if value is not None},
        }
        state |= of_group
    tensors = {
        f"{name}.{buffer}": _array(value)
        for name, buffers in state.items()
        for buffer, value in buffers.items()
        if buffer not in {"step", *own} and value is not None
    }
    counted = 0 if optimizer in UNCOUNTED else int(_step(state) or 0)
    return StateDict(optimizer, counted, tensors, {group: values for group, values in numbers.items() if values})


def _array(value: Any) -> Array:
    tensor = torch.as_tensor(value)
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy(force=True)


def _step(state: Mapping[str, Mapping[str, Any]]) -> float | None:
    for name, buffers in state.items():
        if "step" not in buffers and any("step" in others for others in state.values()):
            raise ValueError(f"the state has no step of {name!r}, and a session keeps state of every parameter or none")
    return _common("step", state)


def _common(number: str, state: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The number that every parameter has, or None where none has it. Raises: ValueError when they differ."""
    values = {name: float(buffers[number]) for name, buffers in state.items() if number in buffers}
    first = next(iter(values), "")
    for name, value in values.items():
        if value != values[first]:
            raise ValueError(
                f"the state has a {number} of {values[first]:g} for {first!r} and of {value:g} for {name!r}, and a "
                "session keeps one for all its parameters together"
            )
    return values.get(first)


def loaded_groups(
    state_dict: TorchState, groups: Sequence[ParamGroup], known: Iterable[str], optimizer: str
) -> list[ParamGroup]:
    """The parameter groups of a `state_dict`, with the parameters of ``groups``.

    Raises: ValueError when they are not alike, lack a hyperparameter, or ask for what the session does not do.
    """
    saved = state_dict["param_groups"]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        raise ValueError("the state dict has other parameter groups than this optimizer, or groups of another size")
    for i, (group, new) in enumerate(zip(groups, saved, strict=True)):
        _check(new, f"the state dict's parameter group {i}", known, optimizer, maximize=group["maximize"])
    return [_with_params_of(group, deepcopy(new)) for group, new in zip(groups, saved, strict=True)]


def _check(group: ParamGroup, what: str, known: Iterable[str], optimizer: str, *, maximize: bool) -> None:
    missing = [name for name in known if name not in group]
    if missing:
        raise ValueError(f"{what} has no {missing[0]!r}: it is of another optimizer than {optimizer!r}")
    if bool(group.get("maximize")) != maximize:
        raise ValueError(f"{what} {_direction(not maximize)}, and this session {_direction(maximize)}")
    decoupled = DECOUPLED.get(optimizer)
    if decoupled is not None and group.get("decoupled_weight_decay", decoupled) != decoupled:
        raise ValueError(f"{what} is of {'adam' if decoupled else 'adamw'!r}, not of {optimizer!r}")


def _direction(maximize: bool) -> str:
    return "maximizes" if maximize else "minimizes"


def _with_params_of(group: ParamGroup, new: ParamGroup) -> ParamGroup:
    new.pop(REST, None)
    new["maximize"] = group["maximize"]
    new["params"] = group["params"]
    if "param_names" in group:
        new.setdefault("param_names", group["param_names"])
    return new
