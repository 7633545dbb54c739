"""A session's arithmetic without the session: layouts, gradients, and a run over flat buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optimd_service.optim.catalogue import find
from optimd_service.optim.flat_group import FlatGroup, Numbers
from optimd_service.optim.update import Here, Norms, Workplace, update_, update_tensors_
from optimd_service.types import Layout, TensorSpec

Settings = Mapping[str, Any]
SHAPES = ((), (0,), (3,), (17, 5), (2, 3, 4, 5), (3001,), (60, 50))


def layout_of(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Layout:
    """Tensors t0, t1, …, alternately in groups ``default`` and ``slow``."""
    specs = [TensorSpec(f"t{i}", shape, "slow" if i % 2 else "default") for i, shape in enumerate(shapes)]
    return Layout.arrange(specs, ["slow", "default"], dtype)


def gradients(layout: Layout, steps: int) -> list[Tensor]:
    """Seeded gradients of every size from 1e-4 to 1, one flat buffer a step."""
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-4, 0, layout.numel, dtype=layout.dtype)
    return [torch.randn(layout.numel, generator=generator, dtype=layout.dtype) * size for _ in range(steps)]


class FlatRun:
    """A session's arithmetic without the session: one flat buffer a kind, two groups, ``slow`` at half the rate.

    Attributes:
      state: buffer → tensor → its state, in the tensor's shape or in the optimizer's own.
      numbers: group → what the optimizer remembers of it.
    """

    def __init__(self, optimizer: str, settings: Settings, layout: Layout, block: int | None = None) -> None:
        self.layout, self.optimizer = layout, find(optimizer)
        self.place: Workplace = Here() if block is None else Here(block)
        hyper = self.optimizer.parse(settings, where="optimizer")
        self.hyper = {"default": hyper, "slow": self.optimizer.parse({**dict(hyper), "lr": hyper.lr / 2}, where="slow")}
        self.params = torch.randn(layout.numel, generator=torch.Generator().manual_seed(0), dtype=layout.dtype)
        self.numbers: dict[str, Numbers] = {name: dict(self.optimizer.numbers) for name in layout.groups}
        self.flat: dict[str, Tensor] = {}
        self.state = self._new_state()
        self.steps = 0

    def _new_state(self) -> dict[str, dict[str, Tensor]]:
        names = self.optimizer.state(self.hyper["default"])
        if self.optimizer.shapes is None:
            self.flat = {name: torch.zeros_like(self.params) for name in names}
            return {name: self.layout.views(buffer) for name, buffer in self.flat.items()}
        shapes = {t.name: self.optimizer.shapes(self.hyper[t.group], t.shape) for t in self.layout.tensors}
        return {
            name: {t: torch.zeros(of[name], dtype=self.params.dtype) for t, of in shapes.items() if name in of}
            for name in names
        }

    def step(self, grads: Tensor) -> Norms:
        self.steps += 1
        return Norms.joined(self._update(grads, name) for name in self.layout.groups)

    def _update(self, grads: Tensor, name: str) -> Norms:
        fresh, hyper = self.steps == 1, self.hyper[name]
        whole = FlatGroup(self.params, grads, self.flat, self.steps, fresh, self.numbers[name])
        group = whole.part(*self.layout.groups[name])
        if self.optimizer.shapes is None:
            return update_(self.optimizer, group, hyper, self.place)
        return update_tensors_(self.optimizer, group, list(self._tensors(whole, name)), hyper, self.place)

    def _tensors(self, whole: FlatGroup, name: str) -> Iterable[FlatGroup]:
        for t in self.layout.tensors:
            if t.group == name:
                state = {buffer: of[t.name] for buffer, of in self.state.items() if t.name in of}
                yield whole.part(*self.layout.spans[t.name])._replace(state=state, shape=t.shape)

    def twin(self) -> FlatRun:
        """Another run that was given this one's weights, state, numbers and step, and nothing else."""
        other = FlatRun(self.optimizer.name, dict(self.hyper["default"]), self.layout, self.place.block)
        other.params.copy_(self.params)
        other.numbers = {name: dict(numbers) for name, numbers in self.numbers.items()}
        for name, tensors in self.state.items():
            for tensor, kept in tensors.items():
                other.state[name][tensor].copy_(kept)
        other.steps = self.steps
        return other


def deviation(got: Tensor, wanted: Tensor, unit: float = 0.0) -> float:
    """The largest difference, in units of the largest magnitude wanted or of ``unit``, if that is larger.

    Args:
      unit: the largest magnitude that was there on the way: a number that was 1 and is 1e-3 keeps the rounding of 1.
    """
    if wanted.numel() == 0:
        return 0.0
    largest = max(unit, wanted.abs().max().item())
    difference = (got - wanted).abs().max().item()
    return difference / largest if largest else difference
