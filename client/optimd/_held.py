"""Arrays that hold a session's weights to the bit, so that the server may send the difference alone."""

from __future__ import annotations

from collections.abc import Collection
from weakref import ref

import numpy as np

from optimd._dtypes import F32
from optimd._safetensors import Array
from optimd._sink import Out

NOTHING = "none"
"""Shown in place of a token."""


class Held:
    """The arrays that a session's weights were last received into, and the token that names what they hold.

    A token is good for one reply: the arrays are written while that is received, and hold what the next token names
    when all of it is there.

    Args:
      names: of the session's tensors.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._token = NOTHING
        self._arrays: dict[str, ref[Array]] = {}

    def takes(self, out: Out | None) -> bool:
        """Whether differences can be received into ``out``: every tensor is there, in one piece of float32."""
        return out is not None and len(out) == len(self._names) and all(map(_is_plain, out.values()))

    def show(self, out: Out) -> str:
        """What to show the server for a reply into ``out``, arrays that it takes; they count as written from now on."""
        token, known = self._token, self._arrays
        self.drop()
        same = len(known) == len(out) and all(known[name]() is array for name, array in out.items())
        return token if same else NOTHING

    def keep(self, token: str | None, out: Out) -> None:
        """Take note that a whole reply has been received into ``out``, and of its token if it had one."""
        if token is not None:
            self._token, self._arrays = token, {n: ref(a) for n, a in out.items() if isinstance(a, np.ndarray)}

    def drop(self) -> None:
        """Take note that the arrays may be written."""
        self._token, self._arrays = NOTHING, {}


def _is_plain(target: object) -> bool:
    return isinstance(target, np.ndarray) and target.dtype == F32 and target.flags.c_contiguous
