"""What the reply to a push is to carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from optimd_service.api.media import MEDIA_TYPES, Kind
from optimd_service.errors import InvalidField
from optimd_service.session.session import Session
from optimd_service.wire.dtypes import queried_dtype


@dataclass(frozen=True, slots=True)
class Pull:
    """The weights wanted, if any.

    Attributes:
      dtype: of them; what the session says when None.
      receipt_last: the receipt stands behind the weights, so that they can leave before the step has ended.
      holds: the token of what the client holds, or another word if it holds nothing, where it wants the difference.
    """

    kind: Kind
    weights: bool
    dtype: torch.dtype | None = None
    holds: str | None = None
    receipt_last: bool = False

    @classmethod
    def read(cls, kind: Kind, query: Mapping[str, str], *, weightless: bool) -> Pull:
        """Read ``?pull=``, ``?holds=`` and ``?receipt=``.

        Args:
          weightless: the push is one that brings no weights.

        Raises: InvalidField.
        """
        if not query and not weightless:
            return _USUAL[kind]
        pull = cls._weights(kind, query, weightless=weightless)
        place = query.get("receipt", "first")
        if place not in {"first", "last"} or (place == "last" and not (pull.weights and kind == "safetensors")):
            raise InvalidField(
                f"receipt={place[:80]!r}: it is `first`, or in a reply with weights in safetensors `last`.",
                field="receipt",
            )
        return replace(pull, receipt_last=True) if place == "last" else pull

    @classmethod
    def _weights(cls, kind: Kind, query: Mapping[str, str], *, weightless: bool) -> Pull:
        wanted, holds = query.get("pull"), query.get("holds")
        if weightless and (holds is not None or wanted not in {None, "none"}):
            raise InvalidField(
                "A part brings no weights; say what to pull with complete=true.",
                field="pull" if holds is None else "holds",
            )
        if holds is not None:
            return cls._difference(kind, wanted, holds)
        if weightless or wanted == "none":
            return cls(kind, weights=False)
        return cls(kind, weights=True, dtype=None if wanted is None else queried_dtype("pull", wanted))

    @classmethod
    def _difference(cls, kind: Kind, wanted: str | None, holds: str) -> Pull:
        if wanted is not None or kind == "json" or not holds:
            raise InvalidField(
                "`holds` is a token that a reply named, or `none`. Its reply is in safetensors, in a dtype of its own: "
                "say `Accept: application/vnd.safetensors`, and leave `pull` out.",
                field="holds",
            )
        return cls(kind, weights=True, holds=holds)

    def check(self, session: Session) -> None:
        """Refuse what the session cannot be asked for, before the step. Raises: NotAcceptable, InvalidField."""
        if self.weights and self.kind == "json":
            session.encoder.check_json()
        if self.holds is not None and session.held is None:
            raise InvalidField(
                "The session does not remember what its client holds: create one whose `wire` says `difference`, or "
                "leave `holds` out.",
                field="holds",
            )

    def is_quick(self, session: Session) -> bool:
        """Whether little is to be done for the reply before it is sent."""
        return not self.weights or (session.tiny and self.kind == "safetensors")


_USUAL: Mapping[Kind, Pull] = {kind: Pull(kind, weights=True) for kind in MEDIA_TYPES}
