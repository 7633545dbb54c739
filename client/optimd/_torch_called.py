"""Which modules a forward pass calls, and so which one is about to use a parameter."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


class Removable(Protocol):
    """What torch gives for a hook."""

    def remove(self) -> None: ...


class CalledModules:
    """Modules whose call is seen.

    A module may use parameters of modules that it holds and never calls, as nn.MultiheadAttention does with its last
    layer's, and inside compiled code no call is seen at all. So each called module stands for its own parameters and
    for those of the modules in it that have not been called.
    """

    def __init__(self) -> None:
        self._called: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._claimed: set[int] | None = None

    def add(self, module: nn.Module) -> None:
        """Take note that a module has been called."""
        if module not in self._called:
            self._called.add(module)
            self._claimed = None

    def parameters_of(self, module: nn.Module) -> Iterator[Tensor]:
        """What this module is about to use."""
        yield from module.parameters(recurse=False)
        for child in module.children():
            if child not in self._called:
                yield from self.parameters_of(child)

    def unclaimed(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Those of ``params`` that no called module stands for."""
        if self._claimed is None:
            self._claimed = {id(param) for module in self._called for param in self.parameters_of(module)}
        return [param for param in params if id(param) not in self._claimed]


def before_each_forward(act: Callable[[nn.Module], None]) -> Removable:
    """Act before every module's call, except inside compiled code; ``act`` is a method, whose object is not kept."""
    held = weakref.WeakMethod(act)

    def hook(module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and (method := held()) is not None:
            method(module)

    handle: Removable = register_module_forward_pre_hook(hook)
    weakref.finalize(act.__self__, handle.remove)  # type: ignore[attr-defined] # it is a method
    return handle
