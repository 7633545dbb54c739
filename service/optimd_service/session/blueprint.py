"""From a description to a layout and settings: everything about a session that is decided before it exists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

import torch

from optimd_service.errors import InvalidField
from optimd_service.optim.catalogue import find
from optimd_service.optim.initialisers import check_initialiser
from optimd_service.optim.state_dtype import require_state_dtype
from optimd_service.session.description import (
    MAX_PATTERNS,
    GroupDescription,
    SessionDescription,
    TensorDescription,
    read_tensors,
)
from optimd_service.session.plan import Plan
from optimd_service.session.policy import Policy
from optimd_service.session.settings import Settings, check_tensors, own_values
from optimd_service.types import DEFAULT_GROUP, Layout, Role, TensorSpec
from optimd_service.wire.dtypes import WIRE_DTYPES

Weights = Mapping[str, tuple[Sequence[int], str]]  # name → shape and dtype of weights that came with the body


@dataclass(frozen=True)
class Blueprint:
    """A checked description.

    Attributes:
      description: as given.
      tensors: as given or, when absent, those of the weights; their order is the order of initialisation.
      groups: as declared, each with its name.
      plan: what the session begins with.
    """

    description: SessionDescription
    tensors: Sequence[TensorDescription]
    groups: Mapping[str, GroupDescription]
    plan: Plan

    @classmethod
    def draw(cls, description: SessionDescription, weights: Weights | None) -> Blueprint:
        """Check a description as a whole.

        Raises: InvalidField, InvalidHyperparameter.
        """
        tensors = _tensors(description, weights)
        roles = _roles(tensors, description)
        trained = [tensor for tensor in tensors if roles[tensor.name] == "trained"]
        groups, membership = _grouped(trained, description)
        order = [name for name in groups if name != DEFAULT_GROUP] + [DEFAULT_GROUP]
        layout = Layout.arrange(
            [TensorSpec(t.name, tuple(t.shape), membership.get(t.name, ""), roles[t.name]) for t in tensors],
            order,
            WIRE_DTYPES[tensors[0].dtype],
        )
        _check_grad_dtype(description, layout)
        description.wire.checked(layout.dtype)
        optimizer = find(description.optimizer.name)
        own = {name: group.hyperparameters for name, group in groups.items()}
        settings = Settings(optimizer, tuple(layout.groups), description.optimizer.hyperparameters, own)
        check_tensors(settings, layout)
        require_state_dtype(optimizer, description.state_dtype, layout.dtype)
        return cls(description, tensors, groups, Plan(layout, settings, _policy(description)))

    @property
    def layout(self) -> Layout:
        return self.plan.layout


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


def _policy(description: SessionDescription) -> Policy:
    return Policy(
        nonfinite=description.nonfinite,
        clip=description.clip,
        centralize=description.centralize,
        maximize=description.maximize,
        accumulate=description.accumulate,
        loss_scale=description.loss_scale,
        schedule=description.schedule,
        grad_dtype=description.grad_dtype and WIRE_DTYPES[description.grad_dtype],
        wire=description.wire,
        state_dtype=description.state_dtype,
        seed=description.seed,
        ema=description.ema,
        swa=description.swa,
        device=description.storage.device,
    )


def _check_grad_dtype(description: SessionDescription, layout: Layout) -> None:
    if description.grad_dtype is None:
        return
    if layout.dtype is not torch.float32:
        raise InvalidField("Gradients in BF16 go with weights in F32; leave `grad_dtype` out.", field="grad_dtype")
    if layout.of_buffers.tensors:
        raise InvalidField(
            "Buffers that come with a push would be rounded to BF16; leave `grad_dtype` out, or make them `frozen` and "
            "put them with the weights.",
            field="grad_dtype",
        )


def _roles(tensors: Sequence[TensorDescription], description: SessionDescription) -> dict[str, Role]:
    said: dict[Role, list[str]] = {"buffer": description.buffers, "frozen": description.frozen}
    patterns = [(role, _any_of(given)) for role, given in said.items() if given]

    def role_of(tensor: TensorDescription) -> Role:
        if tensor.role is not None:
            return tensor.role
        return next((role for role, pattern in patterns if pattern.match(tensor.name)), "trained")

    roles = {tensor.name: role_of(tensor) for tensor in tensors}
    for tensor in tensors:
        if tensor.group is not None and roles[tensor.name] != "trained":
            raise InvalidField(
                f"Tensor {tensor.name!r} is in group {tensor.group!r} and not trained; leave one of the two out.",
                field="tensors.group",
            )
    return roles


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


NO_DECAY = "no_decay"
# What the usual recipe spares from weight decay, beside everything of fewer than two dimensions.
_SPARED = ("*bias", "*norm*", "*.bn*", "bn*", "*embed*pos*", "*pos*embed*")


def _is_spared(tensor: TensorDescription) -> bool:
    return len(tensor.shape) < 2 or _any_of(_SPARED).match(tensor.name.lower()) is not None


def _grouped(
    tensors: Sequence[TensorDescription], description: SessionDescription
) -> tuple[Mapping[str, GroupDescription], Mapping[str, str]]:
    """Group name → description, and tensor name → group name."""
    if description.groups != "no_decay":
        groups = _named(description.groups)
        return groups, _membership(tensors, groups)
    spared = [tensor.model_copy(update={"group": NO_DECAY}) for tensor in tensors if _is_spared(tensor)]
    groups = {NO_DECAY: GroupDescription(name=NO_DECAY, weight_decay=0.0)} if spared else {}
    named = {tensor.name: tensor for tensor in spared}
    return groups, _membership([named.get(tensor.name, tensor) for tensor in tensors], groups)


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
    patterns = [(_any_of(group.match), name) for name, group in groups.items() if group.match]

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
