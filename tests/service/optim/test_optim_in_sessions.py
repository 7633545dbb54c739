"""Every optimizer of the catalogue as sessions run it: 50 pushes, in five recipes, against its reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from optim_references import ROW
from optim_tensor_references import MATRICES, REFERENCES
from torch import Tensor

from optimd_service.optim.catalogue import OPTIMIZERS
from optimd_service.optim.update import Here
from optimd_service.session.blueprint import Blueprint
from optimd_service.session.description import read_description
from optimd_service.session.push import Push
from optimd_service.store.device import DeviceStore
from optimd_service.types import Layout, Receipt

STEPS = 50
SHAPES = [(3,), (17, 5), (2, 3, 4, 5), (60, 50)]
# Fields of the create body. `groups`: the second and fourth tensor have a rate of their own; every recipe keeps them.
RECIPES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"optimizer": {"weight_decay": 0.1}},
    "groups": {"groups": [{"name": "slow", "match": ["t1", "t3"]}]},
    "schedule": {"schedule": {"name": "exponential", "gamma": 0.95}},
    "clip": {"clip": {"max_norm": 1.0}},
}
# Where a norm is scaled in bfloat16 it is rounded there; otherwise every bfloat16 is a float32.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
# Its matrices are made orthonormal in bfloat16, which makes more of the last digit of a norm that gradients are scaled
# by.
LOOSER = {("muon", "clip"): 1e-5}
WITHOUT_DECAY = {name for name, row in OPTIMIZERS.items() if "weight_decay" not in row.hyperparameters.model_fields}


@dataclass(frozen=True)
class FlatBody:
    """A push that holds these gradients and nothing else."""

    flat: Tensor
    quick = True

    def digest(self) -> bytes:
        return b""

    def fields(self) -> dict[str, Any]:
        return {}

    def holds_buffers(self, _layout: Layout) -> bool:
        return False

    def rows(self, _layout: Layout) -> Mapping[str, Any]:
        return {}

    def land_(self, flat: Tensor, _layout: Layout, _by_rows: Collection[str] = ()) -> None:
        flat.copy_(self.flat)


def shapes_of(optimizer: str) -> list[tuple[int, ...]]:
    return [shape for shape in MATRICES if 0 not in shape] if optimizer in {"muon", "sparse_adam"} else SHAPES


def drawn(optimizer: str, recipe: str, wire: torch.dtype) -> Blueprint:
    fields = {name: value for name, value in RECIPES[recipe].items() if name != "optimizer"}
    tensors = [{"name": f"t{i}", "shape": list(shape)} for i, shape in enumerate(shapes_of(optimizer))]
    said = {"name": optimizer, **RECIPES[recipe].get("optimizer", {})}
    if wire is torch.bfloat16:
        fields["grad_dtype"] = "BF16"
    if recipe == "groups":
        rate = OPTIMIZERS[optimizer].hyperparameters().lr / 2
        fields["groups"] = [{**group, "lr": rate} for group in fields["groups"]]
    return Blueprint.draw(read_description({"optimizer": said, "tensors": tensors, **fields}), None)


def gradients(layout: Layout, wire: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-3, 0, layout.numel)
    return [(torch.randn(layout.numel, generator=generator) * size).to(wire) for _ in range(STEPS)]


def run(blueprint: Blueprint, start: Tensor, grads: list[Tensor]) -> tuple[Tensor, list[Receipt]]:
    """The weights after all pushes, and their receipts."""
    plan = blueprint.plan
    state = DeviceStore(10**9).create("s", plan.layout, plan.buffers, plan.grads)
    state.read_state().params.copy_(start)
    pushes = [Push("s", FlatBody(flat), None, state, plan) for flat in grads]
    receipts = [push.apply(Here()) for push in pushes]
    return state.read_state().params, receipts


def reference_run(
    optimizer: str, blueprint: Blueprint, recipe: str, start: Tensor, grads: list[Tensor]
) -> tuple[dict[str, Tensor], list[float]]:
    """The same by the table's reference, one for each group: weights, and norms before clipping."""
    layout = blueprint.layout
    params = {name: view.clone() for name, view in layout.views(start).items()}
    renamed = ROW[optimizer].renamed if optimizer in ROW else {}
    reference = ROW[optimizer].reference if optimizer in ROW else REFERENCES[optimizer]
    parts = [
        reference(
            [params[t.name] for t in layout.tensors if t.group == group],
            **{renamed.get(name, name): value for name, value in hyper.model_dump().items()},
        )
        for group, hyper in blueprint.plan.settings.resolved.items()
    ]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(part, 0.95) for part in parts if recipe == "schedule"]
    norms = []
    for flat in grads:
        for name, view in layout.views(flat).items():
            params[name].grad = view.to(torch.float32, copy=True)
        bound = 1.0 if recipe == "clip" else float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), bound).item())
        for part in [*parts, *schedules]:
            part.step()
    return params, norms


def cases() -> list[Any]:
    return [
        pytest.param(optimizer, recipe, wire, id=f"{optimizer}-{recipe}-{str(wire)[6:]}")
        for optimizer in OPTIMIZERS
        for recipe in RECIPES
        for wire in TOLERANCE
        if not (recipe == "decay" and optimizer in WITHOUT_DECAY)
    ]


@pytest.mark.parametrize(("optimizer", "recipe", "wire"), cases())
def test_a_session_is_the_reference_after_50_pushes(optimizer: str, recipe: str, wire: torch.dtype) -> None:
    blueprint = drawn(optimizer, recipe, wire)
    layout = blueprint.layout
    start = torch.randn(layout.numel, generator=torch.Generator().manual_seed(0))
    grads = gradients(layout, wire)
    params, receipts = run(blueprint, start, grads)
    wanted, norms = reference_run(optimizer, blueprint, recipe, start, grads)
    for name, got in layout.views(params).items():
        unit = max(start.abs().max().item(), wanted[name].abs().max().item())
        bound = max(TOLERANCE[wire], LOOSER.get((optimizer, recipe), 0.0))
        assert (got - wanted[name]).abs().max().item() / unit <= bound, name
    assert [receipt.step for receipt in receipts] == list(range(1, STEPS + 1))
    assert [receipt.grad_norm for receipt in receipts] == pytest.approx(norms, rel=1e-5)
    assert not torch.equal(params, start)
