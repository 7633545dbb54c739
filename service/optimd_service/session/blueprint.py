"""From a description to a layout and settings: everything about a session that is decided before it exists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from optimd_service.errors import InvalidField
from optimd_service.optim.catalogue import find
from optimd_service.optim.initialisers import check_initialiser
from optimd_service.session.description import GroupDescription, SessionDescription, TensorDescription, read_tensors
from optimd_service.session.settings import Settings, own_values
from optimd_service.types import DEFAULT_GROUP, Layout, TensorSpec
from optimd_service.wire.dtypes import WIRE_DTYPES

MAX_PATTERNS = 1_000
Weights = Mapping[str, tuple[Sequence[int], str]]  # name → shape and dtype of weights that came with the body


@dataclass(frozen=True)
class Blueprint:
    """A checked description.

    Attributes:
      description: as given.
      tensors: as given or, when absent, those of the weights; their order is the order of initialisation.
      groups: as declared, each with its name.
    """

    description: SessionDescription
    tensors: Sequence[TensorDescription]
    groups: Mapping[str, GroupDescription]
    layout: Layout
    settings: Settings

    @classmethod
    def draw(cls, description: SessionDescription, weights: Weights | None) -> Blueprint:
        """Check a description as a whole.

        Raises: InvalidField, InvalidHyperparameter.
        """
        tensors = _tensors(description, weights)
        groups = _named(description.groups)
        membership = _membership(tensors, groups)
        order = [name for name in groups if name != DEFAULT_GROUP] + [DEFAULT_GROUP]
        layout = Layout.arrange(
            [TensorSpec(t.name, tuple(t.shape), membership[t.name]) for t in tensors],
            order,
            WIRE_DTYPES[tensors[0].dtype],
        )
        optimizer = find(description.optimizer.name)
        own = {name: group.hyperparameters for name, group in groups.items()}
        settings = Settings(optimizer, tuple(layout.groups), description.optimizer.hyperparameters, own)
        return cls(description, tensors, groups, layout, settings)


def _tensors(description: SessionDescription, weights: Weights | None) -> Sequence[TensorDescription]:
    tensors = description.tensors or _from_weights(weights)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise InvalidField("`tensors` names one tensor twice; names are unique.", field="tensors")
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise InvalidField("`tensors` mixes F32 and F64; a session has one dtype.", field="tensors")
    for number, tensor in enumerate(tensors):
        if tensor.init is not None:
            check_initialiser(tensor.init, tensor.shape, where=f"tensors.{number}.init")
    return tensors


def _from_weights(weights: Weights | None) -> Sequence[TensorDescription]:
    if weights is None:
        detail = "Say what the session holds: `tensors`, or `params`, or a safetensors body."
        raise InvalidField(detail, field="tensors")
    dtype = "F64" if {dtype for _, dtype in weights.values()} == {"F64"} else "F32"
    tensors = [{"name": name, "shape": list(shape), "dtype": dtype} for name, (shape, _) in weights.items()]
    return read_tensors(tensors)


def _named(groups: Sequence[GroupDescription]) -> dict[str, GroupDescription]:
    named = [(group.name or f"group{i}", group) for i, group in enumerate(groups)]
    own_values([(name, {}) for name, _ in named])
    # Each is tried on each tensor, so both lists together decide how long a create takes.
    if sum(len(group.match) for group in groups) > MAX_PATTERNS:
        raise InvalidField(
            f"`groups` holds more than {MAX_PATTERNS} patterns; give the tensors their `group` instead.", field="groups"
        )
    return dict(named)


def _membership(tensors: Sequence[TensorDescription], groups: Mapping[str, GroupDescription]) -> dict[str, str]:
    patterns = [
        (re.compile("|".join(map(translate, group.match))), name) for name, group in groups.items() if group.match
    ]

    def group_of(tensor: TensorDescription) -> str:
        if tensor.group is not None:
            if tensor.group not in groups and tensor.group != DEFAULT_GROUP:
                raise InvalidField(
                    f"Tensor {tensor.name!r} is in group {tensor.group!r}, which is not declared.",
                    field="tensors.group",
                )
            return tensor.group
        return next((name for pattern, name in patterns if pattern.match(tensor.name)), DEFAULT_GROUP)

    membership = {tensor.name: group_of(tensor) for tensor in tensors}
    for empty in groups.keys() - set(membership.values()):
        raise InvalidField(f"Group {empty!r} holds no tensor; mend its `match` or leave it out.", field="groups")
    return membership
