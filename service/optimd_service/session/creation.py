"""What a new session is made from: a JSON body, or the header of a safetensors body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optimd_service.errors import InvalidField, NonfiniteParams
from optimd_service.optim.initialisers import initialise_
from optimd_service.optim.judge import judge, nonfinite_tensors
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.description import read_description
from optimd_service.store.contract import StoredState
from optimd_service.types import Layout
from optimd_service.wire.json import array_from_json, land_json_, read_object
from optimd_service.wire.landing import Landing
from optimd_service.wire.safetensors import read_header

Fill = Callable[[torch.Tensor], None]
"""Writes weights into a flat buffer, shape [numel]; all or nothing."""


def from_json(text: bytearray) -> tuple[Blueprint, Fill | None]:
    """A blueprint, and what fills in the inline ``params``.

    Raises: MalformedJson, InvalidField, InvalidHyperparameter.
    """
    description = read_description(read_object(text))
    params = description.params
    if params is None:
        return Blueprint.draw(description, None), None
    weights = {name: (array_from_json(name, value).shape, "F32") for name, value in params.items()}
    blueprint = Blueprint.draw(description, weights)
    return blueprint, lambda flat: land_json_(flat, blueprint.layout, params, what="params")


def from_header(raw: bytes) -> tuple[Blueprint, Landing]:
    """A blueprint, and where the payload that follows the header belongs.

    Raises: MalformedSafetensors, UnsupportedDtype, InvalidField, InvalidHyperparameter, TensorMismatch, ShapeMismatch.
    """
    header = read_header(raw)
    blueprint = Blueprint.draw(
        read_description(_described(header.metadata.get("session"))),
        {entry.name: (entry.shape, entry.dtype) for entry in header.entries},
    )
    return blueprint, Landing.plan(header, blueprint.layout)


def _described(text: str | None) -> dict[str, Any]:
    if text is None:
        raise InvalidField(
            'A safetensors body says what the session is as JSON text in `__metadata__`\'s "session", for example '
            '{"optimizer": {"name": "adamw"}}.',
            field="session",
        )
    fields = read_object(text)
    if "params" in fields:
        raise InvalidField("The body's own tensors are the weights; leave `params` out.", field="params")
    return fields


def initialise(blueprint: Blueprint, state: StoredState) -> None:
    """Give each tensor its first weights by its ``init``, in the order of the description."""
    working = state.begin({})
    views = blueprint.layout.views(working.params)
    generator = torch.Generator().manual_seed(blueprint.description.seed)
    for tensor in blueprint.tensors:
        if tensor.init is not None:
            view = views[tensor.name]
            first = view if view.is_cpu else torch.empty(view.shape, dtype=view.dtype)  # the draws are the host's
            initialise_(first, tensor.init, generator)
            if first is not view:
                view.copy_(first)
    state.commit(working, state.version, {})


def fill(state: StoredState, fill_: Fill) -> None:
    """Take the first weights as they were sent, perhaps where they landed already.

    Raises: NonfiniteParams, and what ``fill_`` raises.
    """
    working = state.begin({})
    fill_(working.params)
    refuse_nonfinite(working.params, state.layout)
    state.commit(working, state.version, {})


def refuse_nonfinite(flat: torch.Tensor, layout: Layout) -> None:
    """Raise NonfiniteParams naming the tensors, unless every element is finite."""
    if not judge(flat) < float("inf"):
        names = nonfinite_tensors(flat, layout)
        raise NonfiniteParams(f"NaN or infinity in {', '.join(map(repr, names))}.", tensors=names)
