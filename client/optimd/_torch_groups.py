"""Parameter groups as a session sees them: tensors with names, groups with names, hyperparameters as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from optimd._torch_weights import WIRE_DTYPES
from optimd.models import SessionInfo

ParamGroup: TypeAlias = dict[str, Any]
Values: TypeAlias = dict[str, Any]

DEFAULT = "default"


def as_groups(params: Iterable[Any]) -> list[ParamGroup]:
    """What a torch optimizer takes as parameters, as groups of their own: the caller's are not written to.

    Raises: TypeError for a single tensor.
    """
    if isinstance(params, Tensor):
        raise TypeError("params is one tensor; give named_parameters(), a list of tensors, or parameter groups")
    given = list(params)
    if given and isinstance(given[0], dict):
        return [{**group, "params": _as_list(group["params"])} for group in given]
    return [{"params": given}]


def _as_list(params: Tensor | Iterable[Any]) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def tensor_names(groups: Sequence[ParamGroup]) -> list[list[str]]:
    """The name of each parameter, group by group: its own, or `param.0`, `param.1`, … when they have none."""
    names, count = [], 0
    for group in groups:
        size = len(group["params"])
        names.append(list(group.get("param_names") or (f"param.{i}" for i in range(count, count + size))))
        count += size
    return names


def named(groups: Sequence[ParamGroup]) -> dict[str, Tensor]:
    """Tensor name → parameter, group by group."""
    names = (name for of_group in tensor_names(groups) for name in of_group)
    return dict(zip(names, (param for group in groups for param in group["params"]), strict=True))


def check_parameters(groups: Sequence[ParamGroup]) -> None:
    """Refuse parameters that a session cannot hold.

    Raises: ValueError for a name or a parameter that is there twice, and for a group without parameters; TypeError
      for a parameter that is not floating-point.
    """
    if not all(group["params"] for group in groups):
        raise ValueError("a parameter group holds no parameter: leave it out")
    names = Counter(name for of_group in tensor_names(groups) for name in of_group)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise ValueError(f"two parameters are named {name!r}: put a prefix before the names of one of the models")
    first: dict[int, str] = {}
    for name, param in named(groups).items():
        if first.setdefault(id(param), name) != name:
            raise ValueError(f"{first[id(param)]!r} and {name!r} are one and the same parameter")
        if param.dtype not in WIRE_DTYPES:
            raise TypeError(f"the parameter {name!r} is of {param.dtype}, and a session holds floating-point numbers")


def dtype_for(groups: Sequence[ParamGroup]) -> str:
    """float64 when every parameter is, else float32, in safetensors' words."""
    dtypes = {param.dtype for group in groups for param in group["params"]}
    return "F64" if dtypes == {torch.float64} else "F32"


def hyperparameters(group: ParamGroup, known: Iterable[str]) -> Values:
    """The group's hyperparameters as JSON values."""
    return {name: _plain(group[name]) for name in known}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | np.generic):
        return value.item()
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def from_json(values: Mapping[str, Any]) -> Values:
    """Hyperparameters as torch writes them: pairs are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def direction(groups: Sequence[ParamGroup]) -> bool:
    """Whether the groups maximize. Raises: ValueError when some do and others do not."""
    directions = {bool(group.get("maximize")) for group in groups}
    if len(directions) > 1:
        raise ValueError("some parameter groups maximize and others do not: a session does either")
    return directions.pop()


def described(groups: Sequence[ParamGroup], buffers: Mapping[str, Tensor], group_names: Sequence[str]) -> list[Values]:
    """The tensors of a create body. Without ``group_names``, the server finds each one's group."""
    dtype = dtype_for(groups)
    names: Sequence[str | None] = group_names or [None] * len(groups)
    trained = [
        {"name": name, "shape": list(param.shape), "dtype": dtype, "group": group_name}
        for group_name, group, of_group in zip(names, groups, tensor_names(groups), strict=True)
        for name, param in zip(of_group, group["params"], strict=True)
    ]
    beside = [
        {"name": name, "shape": list(tensor.shape), "dtype": dtype, "role": "buffer"}
        for name, tensor in buffers.items()
    ]
    return [*trained, *beside]


def split(info: SessionInfo, group: ParamGroup) -> list[ParamGroup]:
    """One parameter group as the groups that the server has found in it, the session's own first."""
    found = {tensor["name"]: tensor["group"] for tensor in info.get("tensors", [])}
    params = named([group])
    groups = []
    for group_name, values in sorted(info["hyperparameters"].items(), key=lambda item: item[0] != DEFAULT):
        members = {name: param for name, param in params.items() if found[name] == group_name}
        of_group = {"params": list(members.values()), "param_names": list(members)}
        groups.append({**group, **of_group, **from_json(values)})
    return groups


def changes(wanted: Mapping[str, Values], held: Mapping[str, Mapping[str, Any]]) -> tuple[Values, dict[str, Values]]:
    """What has to be said for a session that holds ``held`` to work by ``wanted``.

    Args:
      wanted, held: group name → its full set of hyperparameters.

    Returns: what to say for the session as a whole, and for each other group. Whatever is said for the whole is said
      for each group too, since it would hold there otherwise.
    """
    differing = {
        group: {name for name, value in values.items() if value != held[group][name]}
        for group, values in wanted.items()
    }
    base = differing.pop(DEFAULT, set())
    own = {group: _chosen(wanted[group], names | base) for group, names in differing.items() if names | base}
    return _chosen(wanted.get(DEFAULT, {}), base), own


def _chosen(values: Values, names: set[str]) -> Values:
    return {name: value for name, value in values.items() if name in names}


def match_session(info: SessionInfo, groups: Sequence[ParamGroup], buffers: Mapping[str, Tensor]) -> list[str]:
    """The session's name for each parameter group.

    Raises: ValueError saying how names, shapes, roles or groups differ from the session's.
    """
    held = {tensor["name"]: tensor for tensor in info.get("tensors", [])}
    of_buffers = {name for name, tensor in held.items() if tensor.get("role") == "buffer"}
    there = {name: tuple(tensor["shape"]) for name, tensor in held.items()}
    differences = [
        *_differences(_shapes(named(groups)), {name: there[name] for name in there if name not in of_buffers}),
        *(f"buffer {each}" for each in _differences(_shapes(buffers), {name: there[name] for name in of_buffers})),
        *(f"{name!r} is frozen there" for name, tensor in held.items() if tensor.get("role") == "frozen"),
    ]
    if differences:
        raise ValueError(f"the parameters are not those of session {info['id']}: {'; '.join(differences)}")
    found = [{held[name]["group"] or DEFAULT for name in of_group} for of_group in tensor_names(groups)]
    if any(len(of_group) > 1 for of_group in found) or len(set().union(*found)) < len(found):
        own = {group: [name for name in held if held[name]["group"] == group] for group in info["hyperparameters"]}
        raise ValueError(f"the parameter groups are not those of session {info['id']}, which are {own}")
    return [of_group.pop() for of_group in found]


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def _differences(here: Shapes, there: Shapes) -> list[str]:
    return [
        *(f"{name!r} is only here" for name in here if name not in there),
        *(f"{name!r} is only there" for name in there if name not in here),
        *(
            f"{name!r} has shape {here[name]} here and {there[name]} there"
            for name in here
            if name in there and here[name] != there[name]
        ),
    ]
