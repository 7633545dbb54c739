"""What one client holds of a session's weights, to the bit, so that it can be sent the difference to it."""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from optimd_service.optim.difference import difference_


class Held:
    """A copy of the weights as a client was last given them, under a token that names exactly this content.

    A token is made for one reply, and holds only once all of that reply was made: a client that shows it has what is
    here. Whatever goes wrong in between (the reply is lost, another client is answered, weights are put) leaves no
    token that holds, and the next reply carries whole weights.

    One reply at a time moves the copy. Until all of it is made, another one is whole and has no token, instead of
    waiting for a client that may have stopped reading.

    Args:
      flat: shape [numel], float32; written.
    """

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat
        self._token: str | None = None
        self._moving: Moving | None = None
        self._lock = threading.Lock()

    def move(self, shown: str) -> Moving | None:
        """Begin a reply to a client that shows a token, or any other word if it holds nothing.

        Returns: the reply, to be released by whoever asked for it; None while another is under way.
        """
        with self._lock:
            if self._moving is not None:
                return None
            base = shown if shown == self._token else None
            self._token, self._moving = None, Moving(self, base)
            return self._moving

    def forget(self) -> None:
        """Let no token hold, that of a reply under way included."""
        with self._lock:
            self._token = None
            if self._moving is not None:
                self._moving.forgotten = True

    def end(self, moving: Moving, token: str | None) -> None:
        """Nothing more is made of a reply; if all of it is, its token holds from now on."""
        with self._lock:
            if moving is self._moving:
                self._moving = None
                self._token = None if moving.forgotten else token


@dataclass(eq=False)
class Moving:
    """One reply that moves what is held to the weights that it is made from.

    Attributes:
      base: the token of what the client holds; None if it is sent whole weights.
      token: of what it holds then.
      forgotten: the token will not hold.
    """

    held: Held
    base: str | None
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    forgotten: bool = False
    finite: bool = field(default=True, init=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the reply."""
        return torch.float32 if self.base is None else torch.bfloat16

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the reply says of itself."""
        return {"holds": self.token} | ({} if self.base is None else {"difference": self.base})

    def convert_(self, out: torch.Tensor, params: torch.Tensor, start: int) -> None:
        """Make one piece of the reply; they are made in their order.

        Args:
          out: shape [k], of ``dtype``; written.   params: shape [k], weights from ``start`` on.
        """
        stop = start + len(params)
        held = self.held.flat[start:stop]
        if self.base is None:
            held.copy_(params)
            out.copy_(params)
            self.finite &= math.isfinite(held.sum())
        else:
            self.finite &= difference_(out, held, params)
        if stop == len(self.held.flat):
            # From infinity or NaN no difference leads back.
            self.held.end(self, self.token if self.finite else None)

    def release(self) -> None:
        """Say that nothing more is made. A second call does nothing, nor does one after the last piece."""
        self.held.end(self, None)
