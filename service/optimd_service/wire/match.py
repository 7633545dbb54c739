"""The tensors of a body against the tensors of a session."""

from __future__ import annotations

from collections.abc import Callable, Collection

from optimd_service.errors import TensorMismatch
from optimd_service.types import Layout

NameCheck = Callable[[Layout, Collection[str]], None]
"""Refuses names that a body of this layout cannot hold."""

_NAMED = 10  # of a long list of wrong tensors, this many are named


def check_names(layout: Layout, names: Collection[str]) -> None:
    """Raise TensorMismatch unless ``names`` are exactly the session's tensors."""
    if len(names) == len(layout.shapes) and all(name in layout.shapes for name in names):
        return
    missing = [name for name in layout.shapes if name not in names]
    unknown = _unknown(layout, names)
    parts = [
        f"{len(found)} {label} ({', '.join(repr(name[:80]) for name in found[:_NAMED])})"
        for found, label in ((missing, "missing"), (unknown, "unknown"))
        if found
    ]
    raise TensorMismatch(
        f"The body must hold each tensor of the session once: {' and '.join(parts)}.",
        missing=[name[:80] for name in missing[:_NAMED]],
        unknown=[name[:80] for name in unknown[:_NAMED]],
    )


def check_some(layout: Layout, names: Collection[str]) -> None:
    """Raise TensorMismatch unless all ``names`` are the session's tensors; others may be missing."""
    unknown = [name[:80] for name in _unknown(layout, names)[:_NAMED]]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise TensorMismatch(f"A push of this session holds no such tensors: {listed}.", missing=[], unknown=unknown)


def _unknown(layout: Layout, names: Collection[str]) -> list[str]:
    return [name for name in names if name not in layout.shapes]
