"""A part of a push on its way into the session's gradient buffer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optimd_service.errors import InvalidField
from optimd_service.session.contribution import Contribution
from optimd_service.types import Layout
from optimd_service.wire.json_part import JsonPart
from optimd_service.wire.landing import Landing
from optimd_service.wire.match import check_names
from optimd_service.wire.received import LIBRARY_METADATA, ReadsHeaders, SafetensorsBody
from optimd_service.wire.rows import Rows


@dataclass(frozen=True)
class Arriving:
    """One part on its way.

    Attributes:
      layout: the session's.
    """

    contribution: Contribution
    completes: bool
    layout: Layout

    def check(self, names: Collection[str]) -> None:
        """Refuse tensors that do not belong into this part. Raises: InvalidField, TensorMismatch."""
        buffers = self.buffers_among(names)
        if not self.completes:
            for name in buffers:
                raise InvalidField(
                    f"Tensor {name[:80]!r} is a buffer; new values of buffers come with complete=true.", field=name[:80]
                )
            if not names:
                raise InvalidField("A part holds at least one gradient, unless it says complete=true.", field="grads")
        if buffers:
            check_names(self.layout.of_buffers, buffers)

    def check_facts(self, names: Iterable[str]) -> None:
        """Refuse what is said of the step before all of it has come. Raises: InvalidField."""
        for name in () if self.completes else names:
            raise InvalidField(
                f"{name[:80]!r} stands in a part of a push; say it once, with complete=true.", field=name[:80]
            )

    def begin(self, names: Collection[str]) -> None:
        """Its tensors, which have been checked, are written anew from here on: what was seen of others is void."""
        self.contribution.arriving(names, self.layout)

    def buffers_among(self, names: Collection[str]) -> list[str]:
        """Of ``names``, those of buffers."""
        of_buffers = self.layout.of_buffers.shapes
        return [name for name in names if name in of_buffers] if of_buffers else []


class PartHeaders:
    """Reads the header of a part, and has its tensors counted as missing before the first byte of them is written."""

    def __init__(self, headers: ReadsHeaders, arriving: Arriving) -> None:
        self._headers = headers
        self._arriving = arriving

    def read(self, raw: bytes) -> tuple[Landing, dict[str, str]]:
        """Raises: MalformedSafetensors, UnsupportedDtype, TensorMismatch, ShapeMismatch, InvalidField, TooLarge."""
        landing, metadata = self._headers.read(raw)
        self._arriving.check_facts(metadata.keys() - {LIBRARY_METADATA})
        self._arriving.check(landing.names)
        self._arriving.begin(landing.names)
        return landing, metadata


@dataclass(frozen=True)
class PartBody:
    """A part that has arrived. Once it has landed, what came before it and what came with it are one push."""

    received: SafetensorsBody | JsonPart
    arriving: Arriving

    @property
    def quick(self) -> bool:
        return self.received.quick

    def digest(self) -> bytes:
        return self.received.digest()

    def fields(self) -> dict[str, Any]:
        fields = self.received.fields()
        self.arriving.check_facts(fields)
        return fields

    def holds_buffers(self, layout: Layout) -> bool:  # noqa: ARG002  the session's is known
        return bool(self.arriving.buffers_among(self.received.names))

    def rows(self, layout: Layout) -> Mapping[str, Rows]:  # noqa: ARG002  rows have been refused
        return {}

    def land_(
        self,
        flat: torch.Tensor,
        layout: Layout,  # noqa: ARG002  the session's is known
        by_rows: Collection[str] = (),  # noqa: ARG002  rows have been refused
    ) -> None:
        """Raises: ContributionIncomplete, if it is to complete a push of which some is missing; what came is kept."""
        whole, names = self.arriving.layout, self.received.names
        self.arriving.check(names)
        self.received.land_(flat, whole.pushable)
        if isinstance(self.received, JsonPart):  # written just now, all or nothing; the other kind was as it came
            self.arriving.begin(names)
        self.arriving.contribution.arrived(names)
        if self.arriving.completes:
            self.arriving.contribution.require_all(whole.trained)
